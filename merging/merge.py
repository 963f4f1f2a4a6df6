"""The one loop: reads each tensor's parents, has the method combine them, fills the sink.

It knows neither folders nor model classes: a sink lends it the memory to fill.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from merging import blocks
from merging.blocks import Reader, Work, added, aligned, combine, measure, measuring, pooled, slices
from merging.errors import MergeError, StalledError
from merging.hub import Token
from merging.pairing import Step
from merging.plan import Plan, with_sources
from merging.sources import Adapter, Checkpoint, Local, Remote, Source, arrived, fetch

Numbers = MutableMapping[tuple[Any, ...], dict[str, Any]]
"""What `measure` found, by tensor and measured parameters; valid for one set of parents."""


@dataclass(frozen=True)
class Progress:
    """How far a merge is. `share` is 0 to 1 of the elements, `tally` counts outcomes of tensors."""

    tensor: str
    done: int
    total: int
    share: float
    gb_per_s: float
    seconds_left: float
    stage: str = "merge"
    tally: Mapping[str, int] = field(default_factory=dict)


class Sink(Protocol):
    """Where merged tensors go."""

    def begin(self, plan: Plan) -> None:
        """Reserve room. Raises MergeError if the merge could not be kept."""

    def has(self, name: str) -> bool:
        """Whether the tensor is already there, from an earlier run."""

    def place(self, step: Step) -> Tensor:
        """Flat memory for the tensor, to be filled; any dtype that holds the step's values."""

    def done(self, name: str) -> None:
        """The tensor is filled."""

    def finish(self) -> None:
        """Everything is filled: publish."""

    def abandon(self, *, keep: bool) -> None:
        """Leave nothing half-done; `keep` what the same merge could go on from."""


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(device: str) -> str:
    """Raises MergeError for a GPU that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MergeError("There is no CUDA GPU here: choose --device cpu or auto.")
    return device


def merge(
    plan: Plan, sink: Sink, numbers: Numbers | None = None, *, device: str = "cpu"
) -> Iterator[Progress]:
    """Carry out a plan; the sink is published when the iterator ends.

    Parents that are not on this machine are fetched first. Raises MergeError for values that are
    not finite and for a sink without room; the sink is then abandoned, as when the iterator is
    closed early.
    """
    checked_device(device)
    plan = yield from fetched(plan)
    sink.begin(plan)
    try:
        with pooled(device) as pool:
            yield from _tensors(plan, sink, numbers if numbers is not None else {}, device, pool)
        sink.finish()
    except MergeError as error:
        sink.abandon(keep=isinstance(error, StalledError))  # any other would come again
        raise
    except BaseException:
        sink.abandon(keep=True)
        raise


def survey(
    plan: Plan, function: Callable[[Sequence[Tensor]], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """What `function` of the deltas adds up to in each tensor; the parents must be here.

    Deltas are to the plan's base, in the order of its models, whatever the method.
    Raises MergeError if the recipe has no base, and for values that are not finite.
    """
    if plan.recipe.slices:
        raise MergeError("Figures are taken of whole models: list them under `models`.")
    if not plan.based:
        raise MergeError(
            f"{plan.method.title} has no base to take deltas from: "
            "name a method that has, such as task_arithmetic, with `base_model: …`."
        )
    with pooled("cpu") as pool:
        for step in plan.steps:
            if not step.copied and step.size:
                work = Work(plan.method, step.values, True, step.size, blocks.BLOCK, step.shape)
                read = _reader(plan, step, "cpu")

                def run(block: tuple[int, int], work: Work = work, read: Reader = read) -> Tensor:
                    return function(work.tensors(read, *block)[0])

                results = blocks.in_order(pool, run, work.blocks())
                total = added(results)
                if not total.isfinite().all():
                    raise _not_finite(plan, step)
                yield step.name, total


def fetched(plan: Plan, *, token: Token = False) -> Generator[Progress, None, Plan]:
    """Bring every parent onto this machine; returns the plan over what is now here."""
    return with_sources(plan, (yield from bring(plan.sources, token=token)))


def bring(
    sources: Sequence[Source], *, token: Token = False
) -> Generator[Progress, None, list[Local]]:
    """Bring models onto this machine; returns them as they are here.

    Each part comes once: several adapters may be on one base, which may be a parent besides.
    """
    parts = {part.name: part for source in sources for part in source.parts}
    start, total, before = time.monotonic(), sum(p.missing for p in parts.values()), 0
    here: dict[str, Checkpoint] = {}
    for name, part in parts.items():
        steps = fetch(part, token=token)
        try:
            while True:
                at = next(steps)
                done = before + at.done
                speed = done / max(time.monotonic() - start, 1e-6)
                left = (total - done) / speed if speed else 0.0
                share = min(1.0, done / total) if total else 1.0  # small files are counted as done
                yield Progress(at.file, done, total, share, speed / 1e9, left, "fetch")
        except StopIteration as end:
            here[name] = end.value
        before += part.missing
    return [arrived(source, here) for source in sources]


def _tensors(
    plan: Plan, sink: Sink, numbers: Numbers, device: str, pool: ThreadPoolExecutor
) -> Iterator[Progress]:
    if plan.method.scope == "model":
        numbers = yield from _as_one(plan, numbers, device, pool)
    start, tally = time.monotonic(), Counter[str]()
    total, done, size = sum(step.size for step in plan.steps) or 1, 0, plan.size

    def at(step: Step, extra: int) -> Progress:
        share = (done + extra) / total
        elapsed = max(time.monotonic() - start, 1e-6)
        moved = share * size * (len(plan.sources) + 1)
        left = elapsed / share * (1 - share) if share else 0.0
        return Progress(
            step.name, done + extra, total, share, moved / elapsed / 1e9, left, tally=dict(tally)
        )

    for step in plan.steps:
        if not sink.has(step.name):
            out = sink.place(step)
            if step.copied:
                _copy(plan, step, out)
            else:
                for part in _step(plan, step, out, numbers, device, pool):
                    yield at(step, part)
                _count(plan, step, numbers, tally)
            sink.done(step.name)
        done += step.size
        yield at(step, 0)


def _step(
    plan: Plan, step: Step, out: Tensor, numbers: Numbers, device: str, pool: ThreadPoolExecutor
) -> Iterator[int]:
    work, read = _part(plan, step, device)
    key = _key(plan, step)
    if key not in numbers:
        numbers[key] = measure([(work, read)], pool)
    try:
        yield from combine(work, read, numbers[key], out, step.dtype, pool)
    except ArithmeticError as error:
        raise _not_finite(plan, step) from error


def _part(plan: Plan, step: Step, device: str) -> tuple[Work, Reader]:
    work = Work(plan.method, step.values, plan.based, step.size, blocks.BLOCK, step.shape)
    return work, _reader(plan, step, device)


def _key(plan: Plan, step: Step) -> tuple[Any, ...]:
    """What a tensor's numbers depend on, its name not being enough: slices may move the layers."""
    measured = (step.values[name] for name in plan.method.measured)
    return plan.method.name, plan.method.variant, step.reads, step.sources, step.shape, *measured


def _as_one(
    plan: Plan, numbers: Numbers, device: str, pool: ThreadPoolExecutor
) -> Generator[Progress, None, Numbers]:
    """Measure all tensors as one vector; each of them then has the same numbers."""
    steps = [step for step in plan.steps if not step.copied]
    keys = tuple(_key(plan, step) for step in steps)
    if keys not in numbers:
        parts = [_part(plan, step, device) for step in steps]
        numbers[keys] = yield from _going_over(plan, parts, pool)
    return dict.fromkeys(keys, numbers[keys])


def _going_over(
    plan: Plan, parts: Sequence[tuple[Work, Reader]], pool: ThreadPoolExecutor
) -> Generator[Progress, None, dict[str, Any]]:
    """Progress starts anew with each pass over the model: their number is the method's affair."""
    start, total, gone = time.monotonic(), sum(work.size for work, _ in parts), 0
    size = plan.size
    passes = measuring(parts, pool)
    try:
        while True:
            gone += next(passes)
            done = (gone - 1) % total + 1
            elapsed = max(time.monotonic() - start, 1e-6)
            speed = gone / total * size * len(plan.sources) / elapsed
            left = (total - done) / gone * elapsed
            share = done / total
            yield Progress("the whole model", done, total, share, speed / 1e9, left, "measure")
    except StopIteration as end:
        found: dict[str, Any] = end.value
        return found


def _count(plan: Plan, step: Step, numbers: Numbers, tally: Counter[str]) -> None:
    if plan.method.outcome and step.size:
        tally[plan.method.outcome(**numbers[_key(plan, step)])] += 1


def _parents(plan: Plan, step: Step) -> list[tuple[Local, str]]:
    """The step's sources, which are here by now, each with the tensor's name in it."""
    pairs = zip(step.sources, step.reads, strict=True)
    found = [(plan.sources[place], name) for place, name in pairs]
    return [(source, name) for source, name in found if not isinstance(source, Remote)]


def _reader(plan: Plan, step: Step, device: str) -> Reader:
    parents = _parents(plan, step)
    tensors = [_held(source, name) for source, name in parents]
    if not (step.by_token and plan.vocabulary):
        return lambda start, stop: slices([t().reshape(-1) for t in tensors], start, stop, device)
    names = [source.name for source, _ in parents]
    rows = [plan.vocabulary.rows[name] for name in names]
    other = names.index(plan.donor.name) if plan.donor.name in names else None
    base = len(parents) - 1 if plan.based else other
    return lambda start, stop: aligned([t() for t in tensors], rows, base, device, start, stop)


def _held(source: Local, name: str) -> Callable[[], Tensor]:
    """Gives the tensor: a view of a mapped file costs nothing to hold, what an adapter changes is
    computed, and a reader for each tensor of a model must not hold it.
    """
    if isinstance(source, Adapter) and name in source.changes:
        return partial(source.read, name)
    values = source.read(name)
    return lambda: values


def _not_finite(plan: Plan, step: Step) -> MergeError:
    """Find out whose fault it is; only called when the merge has failed already."""
    for source, name in _parents(plan, step):
        if not source.read(name).isfinite().all():
            return MergeError(
                f"{source.name} holds values that are not finite in `{name}`: "
                "the model is damaged; choose another, or fetch it again."
            )
    return MergeError(
        f"`{step.name}` does not fit {str(step.dtype).removeprefix('torch.')}: "
        "choose a smaller step, or `out_dtype: bfloat16` or `float32`."
    )


def _copy(plan: Plan, step: Step, out: Tensor) -> None:
    """Take over what is no weight, if all parents agree on it."""
    (first, name), *others = _parents(plan, step)
    values = first.read(name)
    for source, read in others:
        if not torch.equal(source.read(read), values):
            raise MergeError(
                f"`{step.name}` is no weight, and differs between {first.name} and "
                f"{source.name}: choose models that agree on it."
            )
    out.copy_(values.reshape(-1))
