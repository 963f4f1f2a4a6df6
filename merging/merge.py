"""The one loop: reads each tensor's parents, runs the method block by block, fills the sink.

It knows neither folders nor model classes: a sink lends it the memory to fill.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from merging import vocabulary
from merging.errors import MergeError
from merging.methods import Method
from merging.methods._method import Ordered, PerBlock
from merging.plan import Plan, Step, with_sources
from merging.sources import Checkpoint, fetch

BLOCK = 1 << 18
"""Elements: 1 MB in float32, so that the few buffers of a method stay in the cache.

Blocks are fixed, not fitted to threads: sums over them are the same for any number of cores.
"""
EVERY = 0.1
"""Seconds between two signs of progress inside one tensor."""

Numbers = MutableMapping[tuple[Any, ...], dict[str, Any]]
"""What `measure` found, by tensor and measured parameters; valid for one set of parents."""
Reader = Callable[[int, int], list[Tensor]]


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

    def abandon(self) -> None:
        """Leave nothing half-done behind."""


def cores() -> int:
    """How many threads merge and chat may use together, decided here for both."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        with _pool(device) as pool:
            yield from _tensors(plan, sink, numbers if numbers is not None else {}, device, pool)
        sink.finish()
    except BaseException:
        sink.abandon()
        raise


def survey(
    plan: Plan, function: Callable[[Sequence[Tensor]], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """What `function` of the deltas adds up to in each tensor; the parents must be here.

    Deltas are to the plan's base, in the order of its models, whatever the method.
    Raises MergeError if the recipe has no base, and for values that are not finite.
    """
    if not plan.based:
        raise MergeError(
            f"{plan.method.title} has no base to take deltas from: "
            "name a method that has, such as task_arithmetic, with `base_model: …`."
        )
    with _pool("cpu") as pool:
        for step in plan.steps:
            if not step.copied and step.size:
                work = _Work(plan.method, step.values, True, step.size, BLOCK, step.shape)
                read = _reader(plan, step, "cpu")
                blocks = pool.map(lambda b, w=work, r=read: function(w.tensors(r, *b)[0]),
                                  work.blocks())  # fmt: skip
                total = _sum(blocks)
                if not total.isfinite().all():
                    raise _not_finite(plan, step)
                yield step.name, total


def merge_tensor(
    method: Method,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    block: int = BLOCK,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """One tensor in memory, through the loop's own code. Values are by YAML name, as in a Step."""
    parents = [*tensors, *([base] if base is not None and method.space == "deltas" else [])]
    promoted = reduce(torch.promote_types, (p.dtype for p in parents))
    out = torch.empty(tensors[0].shape, dtype=out_dtype or promoted)
    with _pool("cpu") as pool:
        work = _Work(
            method, parameters or {}, method.space == "deltas", out.numel(), block, tuple(out.shape)
        )
        read = partial(_slice, [p.reshape(-1) for p in parents])
        found = _measure(work, read, pool)
        for _ in _combine(work, read, found, out.view(-1), out.dtype, pool):
            pass
    return out


@dataclass(frozen=True)
class _Work:
    """One tensor's formula: what `measure` and `combine` need besides the values."""

    method: Method
    values: Mapping[str, Any]
    based: bool
    size: int
    block: int
    shape: tuple[int, ...] = ()

    def blocks(self) -> list[tuple[int, int]]:
        width = max(1, self.size) if self.method.whole else self.block
        return [(i, min(i + width, self.size)) for i in range(0, self.size, width)]

    def tensors(self, read: Reader, start: int, stop: int) -> tuple[list[Tensor], Tensor | None]:
        """The method's inputs for one block, float32, and the base to be added back."""
        parents = read(start, stop)
        if self.method.whole:
            parents = [p.view(self.shape) for p in parents]
        if not self.based:
            return parents, None
        *models, base = parents
        return [model.sub_(base) for model in models], base


def fetched(plan: Plan) -> Generator[Progress, None, Plan]:
    """Bring every parent onto this machine; returns the plan over what is now here."""
    start, total, before = time.monotonic(), plan.missing, 0
    here = []
    for source in plan.sources:
        steps = fetch(source)
        try:
            while True:
                at = next(steps)
                done = before + at.done
                speed = done / max(time.monotonic() - start, 1e-6)
                left = (total - done) / speed if speed else 0.0
                share = done / total if total else 1.0
                yield Progress(at.file, done, total, share, speed / 1e9, left, "fetch")
        except StopIteration as end:
            here.append(end.value)
        before += source.missing
    return with_sources(plan, here)


def _tensors(
    plan: Plan, sink: Sink, numbers: Numbers, device: str, pool: ThreadPoolExecutor
) -> Iterator[Progress]:
    start, tally = time.monotonic(), Counter[str]()
    total, done = sum(step.size for step in plan.steps) or 1, 0

    def at(step: Step, extra: int) -> Progress:
        share = (done + extra) / total
        elapsed = max(time.monotonic() - start, 1e-6)
        moved = share * plan.size * (len(plan.sources) + 1)
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
    work = _Work(plan.method, step.values, plan.based, step.size, BLOCK, step.shape)
    read = _reader(plan, step, device)
    key = _key(plan, step)
    if key not in numbers:
        numbers[key] = _measure(work, read, pool)
    try:
        yield from _combine(work, read, numbers[key], out, step.dtype, pool)
    except ArithmeticError as error:
        raise _not_finite(plan, step) from error


def _key(plan: Plan, step: Step) -> tuple[Any, ...]:
    return (plan.method.name, step.name, *(step.values[name] for name in plan.method.measured))


def _count(plan: Plan, step: Step, numbers: Numbers, tally: Counter[str]) -> None:
    if plan.method.outcome and step.size:
        tally[plan.method.outcome(**numbers[_key(plan, step)])] += 1


def _reader(plan: Plan, step: Step, device: str) -> Reader:
    tensors = [
        source.read(name)
        for source, name in zip(plan.sources, step.reads, strict=True)
        if isinstance(source, Checkpoint)
    ]
    if step.by_token and plan.vocabulary:
        rows = [plan.vocabulary.rows[source.name] for source in plan.sources]
        base = len(tensors) - 1 if plan.based else plan.sources.index(plan.donor)
        return partial(_rows, tensors, rows, base, device)
    return partial(_slice, [t.reshape(-1) for t in tensors], device=device)


def _slice(tensors: Sequence[Tensor], start: int, stop: int, device: str = "cpu") -> list[Tensor]:
    """Fresh float32 copies, which the method may write into."""
    return [t[start:stop].to(device=device, dtype=torch.float32, copy=True) for t in tensors]


def _rows(
    tensors: Sequence[Tensor],
    rows: Sequence[Tensor],
    base: int,
    device: str,
    start: int,
    stop: int,
) -> list[Tensor]:
    width = tensors[0][0].numel() if len(tensors[0]) else 1
    first, last = start // width, -(-stop // width)
    found = vocabulary.gather(tensors, [r[first:last] for r in rows], base)
    cut = slice(start - first * width, stop - first * width)
    return [f.reshape(-1)[cut].to(device, copy=True) for f in found]


def _measure(work: _Work, read: Reader, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Drive the method's `measure`: each function it yields is run over all blocks."""
    if work.method.measure is None or not work.size:
        return {}
    values = work.method.arguments(work.values)
    asked = work.method.measure(**{name: values[name] for name in work.method.measured})
    try:
        want = next(asked)
        while True:
            function = want.function if isinstance(want, Ordered) else want

            def run(block: tuple[int, int], function: Any = function) -> Tensor:
                result: Tensor = function(work.tensors(read, *block)[0])
                return result

            results = pool.map(run, work.blocks())
            want = asked.send(list(results) if isinstance(want, Ordered) else _sum(results))
    except StopIteration as end:
        found: dict[str, Any] = end.value
        return found


def _sum(results: Iterator[Tensor]) -> Tensor:
    total = next(results).clone()
    for result in results:
        total += result
    return total


def _combine(
    work: _Work,
    read: Reader,
    numbers: Mapping[str, Any],
    out: Tensor,
    dtype: torch.dtype,
    pool: ThreadPoolExecutor,
) -> Iterator[int]:
    """Fill `out`, yielding now and then how many are done. ArithmeticError if not finite."""
    values = work.method.arguments(work.values)
    blocks = work.blocks()

    def run(index: int) -> None:
        start, stop = blocks[index]
        tensors, base = work.tensors(read, start, stop)
        own = {k: v.values[index] if isinstance(v, PerBlock) else v for k, v in numbers.items()}
        merged = work.method.combine(tensors, **values, **own)
        result = (merged if base is None else merged.add_(base)).to(dtype).reshape(-1)
        if not result.isfinite().all():
            raise ArithmeticError
        out[start:stop].copy_(result)

    last = time.monotonic()
    for index, _ in enumerate(pool.map(run, range(len(blocks)))):
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            yield blocks[index][1]


def _not_finite(plan: Plan, step: Step) -> MergeError:
    """Find out whose fault it is; only called when the merge has failed already."""
    for source, name in zip(plan.sources, step.reads, strict=True):
        if isinstance(source, Checkpoint) and not source.read(name).isfinite().all():
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
    values = [
        source.read(name)
        for source, name in zip(plan.sources, step.reads, strict=True)
        if isinstance(source, Checkpoint)
    ]
    for source, value in zip(plan.sources, values, strict=True):
        if not torch.equal(value, values[0]):
            raise MergeError(
                f"`{step.name}` is no weight, and differs between {plan.sources[0].name} and "
                f"{source.name}: choose models that agree on it."
            )
    out.copy_(values[0].reshape(-1))


@contextmanager
def _pool(device: str) -> Iterator[ThreadPoolExecutor]:
    """One thread a core, each on its own blocks; a GPU is driven by one."""
    count = cores() if device == "cpu" else 1
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(count, initializer=_enter_thread) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)  # a worker's setting is later threads' default


def _enter_thread() -> None:
    torch.set_num_threads(1)  # blocks are the parallelism
    torch.set_grad_enabled(False)  # a thread's own mode, and this thread ends with the pool
