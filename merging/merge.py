"""The one loop: reads each tensor's parents, has the method combine them, fills the sink.

It knows neither folders nor model classes: a sink lends it the memory to fill.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from merging import inputs
from merging.blocks import Filling, NotFiniteError, Part, combine, measure
from merging.errors import MergeError, StalledError
from merging.hub import Token
from merging.opening import arrived, fetch
from merging.pairing import Step
from merging.plan import Plan, with_sources
from merging.samples import Sample, Sums
from merging.sources import Checkpoint, Local, Source
from merging.threads import pooled

TOGETHER = 1 << 24
"""Elements of the tensors that are merged together, at most, one larger tensor aside: small ones,
too, keep all cores busy, and no more is under way than a stop may lose."""

Numbers = MutableMapping[tuple[Any, ...], dict[str, Any]]
"""What `measure` found, by tensor and measured parameters; valid for one set of parents."""


Samples = MutableMapping[str, Sample]
"""What figures are estimated from, by tensor."""
AllSums = MutableMapping[str, Sums]
"""What figures are computed from exactly, by tensor."""


@dataclass(frozen=True)
class Progress:
    """How far a merge is. `share` is 0 to 1 of the elements, `tally` counts outcomes of tensors."""

    tensor: str
    done: int = 0
    total: int = 1
    share: float = 0.0
    gb_per_s: float = 0.0
    seconds_left: float = 0.0
    stage: str = "merge"
    tally: Mapping[str, int] = field(default_factory=dict)


class Sink(Protocol):
    """Where merged tensors go."""

    def begin(self, plan: Plan) -> None:
        """Reserve room. Raises MergeError if the merge could not be kept."""

    def has(self, name: str) -> bool:
        """Whether the tensor is already there, from an earlier run."""

    def part(self, name: str) -> Any:
        """Tensors of equal parts may be under way at the same time."""

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
    plan: Plan,
    sink: Sink,
    numbers: Numbers | None = None,
    *,
    samples: Samples | None = None,
    sums: AllSums | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Carry out a plan; the sink is published when the iterator ends.

    `numbers` that are there are not measured again, new ones are added; with `samples`, those of
    every tensor are taken on the way, or with `sums` all its elements are summed up. Parents that
    are not on this machine are fetched first.
    Raises MergeError for values that are not finite and for a sink without room; the sink is then
    abandoned, as when the iterator is closed early.
    """
    checked_device(device)
    plan = yield from fetched(plan)
    sink.begin(plan)
    try:
        with pooled(device) as pool:
            known = {} if numbers is None else numbers
            run = _Run(plan, sink, known, samples, sums, device, pool)
            yield from _tensors(run)
        sink.finish()
    except MergeError as error:
        sink.abandon(keep=isinstance(error, StalledError))  # any other would come again
        raise
    except BaseException:
        sink.abandon(keep=True)
        raise


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


@dataclass(frozen=True)
class _Run:
    """What every step of a merge needs."""

    plan: Plan
    sink: Sink
    numbers: Numbers
    samples: Samples | None
    sums: AllSums | None
    device: str
    pool: ThreadPoolExecutor


def _tensors(run: _Run) -> Iterator[Progress]:
    plan, sink = run.plan, run.sink
    if plan.method.scope == "model":
        run = replace(run, numbers=(yield from _as_one(run)))
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

    for group in _groups(plan, sink):
        there = [step for step in group if sink.has(step.name)]
        missing = [step for step in group if step not in there]
        done += sum(step.size for step in there)
        for filled in _fill(run, missing):
            yield at(group[0], filled)
        for step in missing:
            sink.done(step.name)
            _count(plan, step, run.numbers, tally)
            done += step.size
        yield at(group[-1], 0)


def _groups(plan: Plan, sink: Sink) -> Iterator[list[Step]]:
    """The steps in order, as many at a time as may be under way together."""
    group: list[Step] = []
    for step in plan.steps:
        full = sum(other.size for other in group) + step.size > TOGETHER
        apart = group and sink.part(step.name) != sink.part(group[0].name)
        if group and (
            full or apart or inputs.computed(plan, step) or inputs.computed(plan, group[-1])
        ):
            yield group
            group = []
        group.append(step)
    if group:
        yield group


def _fill(run: _Run, steps: Sequence[Step]) -> Iterator[int]:
    """Fill the sink's tensors; yields how many of their elements are merged."""
    plan, numbers = run.plan, run.numbers
    places = {step.name: run.sink.place(step) for step in steps}
    for step in steps:
        if step.copied:
            _copy(plan, step, places[step.name])
    merged = [step for step in steps if not step.copied]
    keys = [_key(plan, step) for step in merged]
    parts = [inputs.part(plan, step, run.device) for step in merged]
    unknown = {key: own for key, own in zip(keys, parts, strict=True) if key not in numbers}
    if unknown:
        measured = yield from _measured(list(unknown.values()), run.pool)
        numbers.update(zip(unknown, measured, strict=True))
    fillings = [
        Filling(*own, numbers[key], places[step.name], step.dtype, step.name)
        for own, key, step in zip(parts, keys, merged, strict=True)
    ]
    whole = run.sums is not None
    taken: list[list[Tensor]] = [[] for _ in merged]
    try:
        wanted = taken if whole or run.samples is not None else None
        yield from combine(fillings, run.pool, wanted, whole=whole)
    except NotFiniteError as error:
        raise _not_finite(plan, merged[error.place]) from error
    for step, found in zip(merged, taken, strict=True):
        if found:
            _take(run, step, torch.cat(found).cpu())


def _take(run: _Run, step: Step, rows: Tensor) -> None:
    """Keep what was taken of a tensor."""
    based, outcome = run.plan.based, _outcome(run.plan, step, run.numbers)
    models = len(step.sources) - based
    if run.sums is not None:
        if not rows.isfinite().all():
            raise _not_finite(run.plan, step)
        run.sums[step.name] = Sums(rows, step.size, models, based, outcome)
    elif run.samples is not None:
        run.samples[step.name] = Sample(rows, step.size, models, based, outcome)


def _measured(
    parts: Sequence[Part], pool: ThreadPoolExecutor
) -> Generator[int, None, list[dict[str, Any]]]:
    """The numbers of each; nothing is filled meanwhile, but a merge can be stopped."""
    steps = measure([[own] for own in parts], pool)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: list[dict[str, Any]] = end.value
            return found
        yield 0


def _key(plan: Plan, step: Step) -> tuple[Any, ...]:
    """What a tensor's numbers depend on, its name not being enough: slices may move the layers."""
    measured = (step.values[name] for name in plan.method.measured)
    return plan.method.name, plan.method.variant, step.reads, step.sources, step.shape, *measured


def _as_one(run: _Run) -> Generator[Progress, None, Numbers]:
    """Measure all tensors as one vector; each of them then has the same numbers."""
    plan, numbers = run.plan, run.numbers
    steps = [step for step in plan.steps if not step.copied]
    keys = tuple(_key(plan, step) for step in steps)
    if keys not in numbers:
        parts = [inputs.part(plan, step, run.device) for step in steps]
        (numbers[keys],) = yield from _going_over(plan, parts, run.pool)
    return dict.fromkeys(keys, numbers[keys])


def _going_over(
    plan: Plan, parts: Sequence[Part], pool: ThreadPoolExecutor
) -> Generator[Progress, None, list[dict[str, Any]]]:
    """Progress starts anew with each pass over the model: their number is the method's affair."""
    start, total, gone = time.monotonic(), sum(work.size for work, _ in parts), 0
    size = plan.size
    passes = measure([parts], pool)
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
        found: list[dict[str, Any]] = end.value
        return found


def _count(plan: Plan, step: Step, numbers: Numbers, tally: Counter[str]) -> None:
    if outcome := _outcome(plan, step, numbers):
        tally[outcome] += 1


def _outcome(plan: Plan, step: Step, numbers: Numbers) -> str | None:
    """What the method did to a tensor, by what it had measured."""
    if not plan.method.outcome or not step.size or step.copied:
        return None
    return plan.method.outcome(**numbers[_key(plan, step)])


def _not_finite(plan: Plan, step: Step) -> MergeError:
    """Find out whose fault it is; only called when the merge has failed already."""
    for source, name in inputs.parents(plan, step):
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
    (first, name), *others = inputs.parents(plan, step)
    values = first.read(name)
    for source, read in others:
        if not torch.equal(source.read(read), values):
            raise MergeError(
                f"`{step.name}` is no weight, and differs between {first.name} and "
                f"{source.name}: choose models that agree on it."
            )
    out.copy_(values.reshape(-1))
