"""Tensors, block by block: runs a method's measure and combine over all cores or on a GPU.

It knows methods and tensors in memory; not plans, nor where the values come from or go.
"""

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial, reduce
from itertools import accumulate
from math import frexp, ldexp
from typing import Any

import torch
from torch import Tensor

from merging import vocabulary
from merging.methods import Method
from merging.methods._method import BlockFunction, Ordered, PerBlock, Sampled

BLOCK = 1 << 18
"""Elements: 1 MB in float32, so that the few buffers of a method stay in the cache.

Blocks are fixed, not fitted to threads: sums over them are the same for any number of cores.
"""
EVERY = 0.1
"""Seconds between two signs of progress inside one tensor."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As glibc's malloc.h numbers them."""
WAITING = 16
"""Blocks at most that are done or under way before their results are taken."""

SLICE, SLICES = 1024, 32
"""Elements of a sampled slice, and how many there are about."""

Reader = Callable[[int, int], list[Tensor]]
"""Gives the parents' values from one flat index to another, as float32 copies of its own."""


def cores() -> int:
    """How many threads merge and chat may use together, decided here for both."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def merge_tensor(
    method: Method,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    block: int = BLOCK,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """One tensor in memory, through the loop's own code.

    Values are by YAML name, as in a Step; what is not given is at its default.
    """
    silent = {
        p.name: (p.control.default,) * len(tensors) if p.per_model else p.control.default
        for p in method.parameters
    }
    parents = [*tensors, *([base] if base is not None and method.space == "deltas" else [])]
    promoted = reduce(torch.promote_types, (p.dtype for p in parents))
    out = torch.empty(tensors[0].shape, dtype=out_dtype or promoted)
    with pooled("cpu") as pool:
        work = Work(
            method, silent | dict(parameters or {}), method.space == "deltas",
            out.numel(), block, tuple(out.shape),
        )  # fmt: skip
        read = partial(slices, [p.reshape(-1) for p in parents])
        found = measure([(work, read)], pool)
        for _ in combine(work, read, found, out.view(-1), out.dtype, pool):
            pass
    return out


@dataclass(frozen=True)
class Work:
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


Job = tuple[Work, Reader, tuple[int, int]]
"""One block of one tensor: its formula, its values, and from where to where it goes."""


def slices(tensors: Sequence[Tensor], start: int, stop: int, device: str = "cpu") -> list[Tensor]:
    """Fresh float32 copies, which the method may write into."""
    return [t[start:stop].to(device=device, dtype=torch.float32, copy=True) for t in tensors]


def aligned(
    tensors: Sequence[Tensor],
    rows: Sequence[Tensor],
    base: int | None,
    device: str,
    start: int,
    stop: int,
) -> list[Tensor]:
    width = tensors[0][0].numel() if len(tensors[0]) else 1
    first, last = start // width, -(-stop // width)
    found = vocabulary.gather(tensors, [r[first:last] for r in rows], base)
    beyond = rows[0][first:last] == vocabulary.PAD
    if bool(beyond.any()):
        for values, mean in zip(found, vocabulary.mean_row(tensors, rows, base), strict=True):
            values[beyond] = mean
    cut = slice(start - first * width, stop - first * width)
    return [f.reshape(-1)[cut].to(device, copy=True) for f in found]


def measure(parts: Sequence[tuple[Work, Reader]], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """What the method's `measure` finds over one tensor, or over several as if they were one."""
    found: dict[str, Any] = _returned(measuring(parts, pool))
    return found


def summed(function: BlockFunction, work: Work, read: Reader, pool: ThreadPoolExecutor) -> Tensor:
    """What a function of the method's inputs adds up to over one tensor."""
    found: Tensor = _returned(_pass(function, [(work, read, b) for b in work.blocks()], pool))
    return found


def _returned(steps: Generator[int, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def measuring(
    parts: Sequence[tuple[Work, Reader]], pool: ThreadPoolExecutor
) -> Generator[int, None, dict[str, Any]]:
    """Drive the method's `measure`: each function it yields is run over all blocks, in order.

    Yields now and then, and at the end of each such pass, how many elements more it has gone over.
    All parts have the method and the measured values of the first.
    """
    jobs = [(work, read, block) for work, read in parts for block in work.blocks()]
    first = parts[0][0] if jobs else None
    if first is None or first.method.measure is None:
        return {}
    values = first.method.arguments(first.values)
    asked = first.method.measure(**{name: values[name] for name in first.method.measured})
    try:
        want = next(asked)
        while True:
            want = asked.send((yield from _pass(want, jobs, pool)))
    except StopIteration as end:
        found: dict[str, Any] = end.value
        return found


def _pass(
    want: BlockFunction | Ordered | Sampled,
    jobs: Sequence[Job],
    pool: ThreadPoolExecutor,
) -> Generator[int, None, Any]:
    if isinstance(want, Sampled):
        return pool.submit(_sample, want, jobs).result()
    alone = isinstance(want, Ordered)
    function = want.function if isinstance(want, Ordered) else want

    def run(job: Job) -> Any:
        work, read, block = job
        return function(work.tensors(read, *block)[0])

    each: list[Any] = []

    def take(result: Any) -> None:
        if alone or not each:
            each.append(result if alone else result.clone())
        else:
            each[0] += result

    ends = [0, *accumulate(stop - start for _, _, (start, stop) in jobs)]
    last = 0
    for taken in over(pool, run, jobs, take):
        if taken > last:
            yield ends[taken] - ends[last]
            last = taken
    return each if alone else each[0]


def _sample(want: Sampled, jobs: Sequence[Job]) -> Any:
    parts = [work.tensors(read, *block)[0] for work, read, block in _spread(jobs)]
    return want.function([torch.cat(pieces) for pieces in zip(*parts, strict=True)])


def _spread(jobs: Sequence[Job]) -> list[Job]:
    """Short slices instead of blocks, spread evenly over them all; all of it where it is short."""
    sizes = [stop - start for _, _, (start, stop) in jobs]
    if sum(sizes) <= SLICE * SLICES:
        return list(jobs)
    each = -(-SLICES // len(jobs))
    found = []
    for work, read, (start, stop) in jobs[:: max(1, len(jobs) // SLICES)]:
        step = max(SLICE, (stop - start) // each)
        firsts = range(start, stop, step)
        found += [(work, read, (first, min(first + SLICE, stop))) for first in firsts]
    return found


def over(
    pool: ThreadPoolExecutor,
    function: Callable[[Any], Any],
    items: Sequence[Any],
    take: Callable[[Any], None] = lambda _: None,
) -> Iterator[int]:
    """Run `function` over all items, on all threads, and `take` its results in the items' order.

    Yields how many are taken, now and then and at the end. Threads fetch their items themselves:
    to be woken for each of them, the caller would take the interpreter from those that work.
    """
    todo, taken, early, turn = iter(enumerate(items)), 0, dict[int, Any](), threading.Lock()
    room, threads = threading.Semaphore(WAITING), min(cores(), len(items))

    def work() -> None:
        nonlocal taken
        try:
            while room.acquire() and (job := next(todo, None)):
                early[job[0]] = function(job[1])
                with turn:
                    while taken in early:
                        take(early.pop(taken))
                        taken += 1
                        room.release()
        finally:
            deque(todo, 0)  # if this one failed, no more is begun
            room.release(threads)

    tasks = [pool.submit(work) for _ in range(threads)]
    try:
        while wait(tasks, EVERY).not_done:
            yield taken
        for task in tasks:
            task.result()
        yield taken
    finally:
        deque(todo, 0)


def combine(
    work: Work,
    read: Reader,
    numbers: Mapping[str, Any],
    out: Tensor,
    dtype: torch.dtype,
    pool: ThreadPoolExecutor,
) -> Iterator[int]:
    """Fill `out`, yielding now and then how many are done. ArithmeticError if not finite."""
    values = work.method.arguments(work.values)
    blocks, edge = work.blocks(), _edge(dtype)

    def run(index: int) -> None:
        start, stop = blocks[index]
        tensors, base = work.tensors(read, start, stop)
        own = {k: v.values[index] if isinstance(v, PerBlock) else v for k, v in numbers.items()}
        merged = work.method.combine(tensors, **values, **own)
        merged = (merged if base is None else merged.add_(base)).reshape(-1)
        # the extremes tell of all: rounding keeps their order, and NaN is either's neighbour
        low, high = merged.aminmax()
        if not -edge < low.item() <= high.item() < edge:
            raise ArithmeticError
        out[start:stop].copy_(merged if out.dtype == dtype else merged.to(dtype))

    for taken in over(pool, run, range(len(blocks))):
        if taken:
            yield blocks[taken - 1][1]


def _edge(dtype: torch.dtype) -> float:
    """The least magnitude that is rounded to infinity: half a step beyond the largest number.

    >>> _edge(torch.float16)
    65520.0
    """
    info = torch.finfo(dtype)
    return info.max + ldexp(info.eps, frexp(info.max)[1] - 2)


@contextmanager
def pooled(device: str) -> Iterator[ThreadPoolExecutor]:
    """One thread a core, each on its own blocks; a GPU is driven by one."""
    _keep_freed_memory()
    count = cores() if device == "cpu" else 1
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)  # this thread adds up results, and must not fight the workers
    with ThreadPoolExecutor(count, initializer=_enter_thread) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)  # a worker's setting is later threads' default


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep what blocks free for the blocks that follow.

    It would give buffers of a megabyte back to the system at once, and zeroing fresh pages takes
    five times as long as the arithmetic does. At most 64 MB a thread stay.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 4 << 20)
        mallopt(M_TRIM_THRESHOLD, 64 << 20)


def _enter_thread() -> None:
    torch.set_num_threads(1)  # blocks are the parallelism
    torch.set_grad_enabled(False)  # a thread's own mode, and this thread ends with the pool
