"""One tensor of a merge, step by step: what a method does to a few of its entries, and how the
whole tensors lie to each other.

The steps are the method's own, run by the loop's own code over the whole tensor; nothing is
written. It knows plans and sources, and draws nothing.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from merging import inputs, plane
from merging.blocks import Block, Filling, NotFiniteError, Part, combine, measure, returned
from merging.errors import MergeError
from merging.methods._method import PerBlock, Stage
from merging.names import layer
from merging.pairing import Step
from merging.plan import Plan
from merging.plane import Arrows
from merging.sources import Remote
from merging.threads import over, pooled

LIMIT = 1 << 22
"""Elements of a tensor, at most, which take half a second of a core; and of a whole model, where a
method measures whole models.
"""
SIDE = 8
"""Rows and columns of what is looked at."""
CHANGED = "What each model changed: its weights, less the base's."
OWN = "The models' own weights."


@dataclass(frozen=True)
class Shown:
    """One stage. `patch` is (models or 1, rows, columns), float32; `shared` if it is one for all.

    Of the whole tensor, `counts` are each one's entries that are not 0, `differ` is the number of
    those in which the models have both signs.
    """

    name: str
    help: str
    shared: bool
    patch: Tensor
    counts: tuple[int, ...]
    differ: int


@dataclass(frozen=True)
class View:
    """What there is to see of one step of a plan.

    `models` are names of sources. The stages go from the inputs to what the method gives; `base` is
    what that is added to, if anything, and `merged` what the merge writes, both (rows, columns).
    `row` and `column` are the first of the patch. `lengths` are the inputs' and the result's;
    `cosine` is that of the two inputs, if there are two. `alone`: the method measures whole models,
    and this is too large a one.
    """

    step: Step
    models: tuple[str, ...]
    row: int
    column: int
    stages: tuple[Shown, ...]
    base: Tensor | None
    merged: Tensor
    lengths: tuple[float, ...]
    cosine: float | None
    outcome: str | None
    arrows: Arrows | None
    alone: bool


def offered(plan: Plan) -> tuple[Step, ...]:
    """The tensors that can be looked at: merged, and not too large."""
    return tuple(s for s in plan.steps if not s.copied and 0 < s.size <= LIMIT)


def usual(steps: Sequence[Step]) -> Step:
    """The one to begin with: the first matrix of the middle layer, if there are layers."""
    numbers = [number for step in steps if (number := layer(step.name)) is not None]
    middle = (max(numbers) + 1) // 2 if numbers else None
    matrices = [s for s in steps if len(s.shape) > 1 and layer(s.name) == middle]
    return (matrices or list(steps))[0]


def sides(step: Step) -> tuple[int, int]:
    """Rows and columns of a tensor, read as a matrix; a vector is cut into rows of `SIDE`."""
    if len(step.shape) < 2:
        return -(-step.size // SIDE), min(SIDE, step.size)
    return step.shape[0], step.size // step.shape[0]


def look(plan: Plan, step: Step, row: int = 0, column: int = 0) -> View:
    """Merge one tensor, and keep what is to be seen of it. Its parents must be on this machine.

    `row` and `column` are the patch's first, moved to where all of it is inside.
    Raises MergeError for parents that are elsewhere, for nothing to merge, and for values that do
    not stay finite.
    """
    _check(plan, step)
    rows, columns = sides(step)
    row = max(0, min(row, rows - SIDE))
    column = max(0, min(column, columns - SIDE))
    places = _places(step, row, column)
    part = inputs.part(plan, step, "cpu")
    with pooled("cpu") as pool:
        numbers, alone = _numbers(plan, part, pool)
        seen = _seen(part, numbers, places, pool)
        out = torch.empty(step.size, dtype=step.dtype)
        try:
            for _ in combine([Filling(*part, numbers, out, step.dtype)], pool):
                pass
        except NotFiniteError as error:
            raise MergeError(
                f"`{step.name}` does not stay finite: choose a smaller step, or other models."
            ) from error
    gram, models = seen.gram, len(seen.stages[0].patch)
    outcome, pair = plan.method.outcome, models == 2
    return View(
        step, tuple(plan.sources[n].name for n in step.sources[:models]), row, column,
        seen.stages, seen.base, out[places], tuple(gram.diagonal().clamp(min=0).sqrt().tolist()),
        plane.cosine(gram) if pair else None, outcome(**numbers) if outcome else None,
        plane.arrows(plan.method, step.values, numbers, gram) if pair else None, alone,
    )  # fmt: skip


def _check(plan: Plan, step: Step) -> None:
    parents = [plan.sources[n] for n in step.sources]
    for source in parents:
        if any(isinstance(part, Remote) for part in source.parts):
            raise MergeError(
                f"{source.name} is not on this machine yet: press Merge, which fetches it."
            )
    if step.size > LIMIT:
        raise MergeError(
            f"`{step.name}` has {step.size:,} entries, too many to go through at each step: "
            f"choose one of at most {LIMIT:,}."
        )
    if len(parents) < 2:  # nor is there a base
        raise MergeError(
            f"{plan.method.title} takes each tensor from one model as it is: "
            "there is nothing that happens step by step. Choose a method that merges."
        )


def _places(step: Step, row: int, column: int) -> Tensor:
    """(rows, columns) flat indices of the patch."""
    rows, columns = sides(step)
    down = torch.arange(row, min(rows, row + SIDE))
    across = torch.arange(column, min(columns, column + SIDE))
    places = down[:, None] * columns + across
    return places[places[:, -1] < step.size]  # a vector's last row may be short


def _numbers(plan: Plan, part: Part, pool: ThreadPoolExecutor) -> tuple[dict[str, Any], bool]:
    """What the method measures, and whether it was of this tensor for want of the whole model."""
    parts, alone = [part], False
    if plan.method.scope == "model":
        merged = [step for step in plan.steps if not step.copied]
        alone = sum(step.size for step in merged) > LIMIT
        parts = parts if alone else [inputs.part(plan, step, "cpu") for step in merged]
    (numbers,) = returned(measure([parts], pool))
    return numbers, alone


@dataclass(frozen=True)
class _Seen:
    """All stages, the base's entries, and the inner products of inputs and result."""

    stages: tuple[Shown, ...]
    base: Tensor | None
    gram: Tensor


class _Facts(NamedTuple):
    """Of one stage in one block."""

    name: str
    help: str
    shared: bool
    entries: Tensor
    counts: Tensor
    differ: Tensor


def _seen(part: Part, numbers: dict[str, Any], places: Tensor, pool: ThreadPoolExecutor) -> _Seen:
    """Run the stages over all blocks; of their values only those at `places` are kept."""
    work, _ = part
    found: list[tuple[list[_Facts], Tensor | None, Tensor]] = []
    jobs = list(enumerate(work.blocks()))
    for _ in over(pool, lambda job: _block(part, numbers, places, *job), jobs, found.append):
        pass
    stages = []
    for facts in zip(*(own for own, _, _ in found), strict=True):
        patch = torch.cat([f.entries for f in facts], 1)
        counts = torch.stack([f.counts for f in facts]).sum(0)
        name, help, shared, *_ = facts[0]
        stages.append(Shown(
            name, help, shared, patch.view(len(patch), *places.shape), tuple(counts.tolist()),
            int(sum(f.differ for f in facts)),
        ))  # fmt: skip
    bases = [base for _, base, _ in found if base is not None]
    base = torch.cat(bases).view(places.shape) if bases else None
    return _Seen(tuple(stages), base, torch.stack([gram for _, _, gram in found]).sum(0))


def _block(
    part: Part, numbers: dict[str, Any], places: Tensor, index: int, block: Block
) -> tuple[list[_Facts], Tensor | None, Tensor]:
    work, read = part
    start, stop = block
    here = places[(places >= start) & (places < stop)] - start  # in order, as the blocks are
    tensors, base = work.tensors(read, *block)
    own = {k: v.values[index] if isinstance(v, PerBlock) else v for k, v in numbers.items()}
    method = work.method
    models, facts = [t.clone() for t in tensors], []
    first = Stage("Deltas", CHANGED, models) if work.based else Stage("Weights", OWN, models)
    stages = method.stages(tensors, **method.arguments(work.values), **own)
    for stage in chain([first], stages):  # one by one: the next may write into what it gave
        facts.append(_facts(stage, here))
        last = stage
    rows = torch.stack([t.reshape(-1).double() for t in (*models, *_tensors(last))])
    return facts, None if base is None else base.reshape(-1)[here], rows @ rows.T


def _facts(stage: Stage, here: Tensor) -> _Facts:
    values = torch.stack([t.reshape(-1) for t in _tensors(stage)])
    if stage.sign is not None:
        values = values * stage.sign.reshape(-1)
    differ = (values.amax(0) > 0) & (values.amin(0) < 0)
    return _Facts(
        stage.name, stage.help, isinstance(stage.tensors, Tensor),
        values[:, here], values.count_nonzero(1), differ.count_nonzero(),
    )  # fmt: skip


def _tensors(stage: Stage) -> Sequence[Tensor]:
    return [stage.tensors] if isinstance(stage.tensors, Tensor) else stage.tensors
