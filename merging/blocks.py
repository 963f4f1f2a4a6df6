"""Tensors, block by block: runs a method's measure and combine over all cores or on a GPU.

It knows methods and tensors in memory; not plans, nor where the values come from or go.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate
from math import frexp, ldexp
from typing import Any, TypeVar

import torch
from torch import Tensor

from merging.methods import Method
from merging.methods._method import Asked, Asking, Ordered, PerBlock, Sampled
from merging.samples import begins, sampled, slices_of, sums
from merging.threads import over, pooled
from merging.vocabulary import Matched

BLOCK = 1 << 18
"""Elements of a block: 1 MB in float32, so that the few buffers of a method stay in the cache.

Blocks are fixed, not fitted to threads: sums over them are the same for any number of cores.
"""
SLICE, SLICES = 1024, 32
"""Elements of a sampled slice, and how many there are about."""

T = TypeVar("T")
Reader = Callable[[int, int], list[Tensor]]
"""Gives the parents' values from one flat index to another, as float32 copies of its own."""


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
        whole(work, read, out.view(-1), out.dtype, pool)
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

    def inputs(self, read: Reader, start: int, stop: int) -> list[Tensor]:
        """The method's inputs alone, for what is measured."""
        return self.tensors(read, start, stop)[0]


Part = tuple[Work, Reader]
"""One tensor's formula and its values."""
Block = tuple[int, int]
"""A block's first flat index, and the first beyond it."""
Job = tuple[Work, Reader, Block]
"""One block of a tensor."""


@dataclass(frozen=True)
class Filling:
    """A merged tensor under way: formula, values, what was measured; `out`, flat, becomes it,
    rounded to `dtype` and then to its own type. `name` seeds its sampling."""

    work: Work
    read: Reader
    numbers: Mapping[str, Any]
    out: Tensor
    dtype: torch.dtype
    name: str = ""


class NotFiniteError(ArithmeticError):
    """A merged tensor does not fit its type; `place` is the first such one's index in the list."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def slices(tensors: Sequence[Tensor], start: int, stop: int, device: str = "cpu") -> list[Tensor]:
    """Fresh float32 copies, which the method may write into."""
    return [t[start:stop].to(device=device, dtype=torch.float32, copy=True) for t in tensors]


def aligned(matched: Matched, start: int, stop: int, device: str) -> list[Tensor]:
    """Fresh float32 copies of tensors whose rows are matched by token."""
    width = matched.width
    first, last = start // width, -(-stop // width)
    cut = slice(start - first * width, stop - first * width)
    return [f.reshape(-1)[cut].to(device, copy=True) for f in matched.read(first, last)]


def whole(
    work: Work, read: Reader, out: Tensor, dtype: torch.dtype, pool: ThreadPoolExecutor
) -> None:
    """Measure and combine one tensor, to the end."""
    (numbers,) = returned(measure([[(work, read)]], pool))
    for _ in combine([Filling(work, read, numbers, out, dtype)], pool):
        pass


def returned(steps: Generator[Any, None, T]) -> T:
    """What a generator returns, its signs of progress unseen."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


def measure(
    asked: Sequence[Sequence[Part]], pool: ThreadPoolExecutor
) -> Generator[int, None, list[dict[str, Any]]]:
    """What the method's `measure` finds over each of several tensors.

    Each of `asked` is one tensor, or several to be measured as if they were one, with the method
    and the measured values of the first. What their `measure` asks for next is run over the blocks
    of all of them together, so that no core waits for the last block of a small tensor.
    Yields how many elements more it has gone over, now and then and at the end of each such pass.
    """
    jobs = [_jobs(parts) for parts in asked]
    asking = [_asking(parts[0][0] if own else None) for parts, own in zip(asked, jobs, strict=True)]
    found: list[dict[str, Any]] = [{} for _ in asked]
    answers: dict[int, Any] = dict.fromkeys(range(len(asked)))
    while answers:
        wanted: dict[int, Asked] = {}
        for place, answer in answers.items():
            try:
                wanted[place] = asking[place].send(answer)
            except StopIteration as end:
                found[place] = end.value
        passed = yield from _answers([(want, jobs[place]) for place, want in wanted.items()], pool)
        answers = dict(zip(wanted, passed, strict=True))
    return found


def _jobs(parts: Sequence[Part]) -> list[Job]:
    return [(work, read, block) for work, read in parts for block in work.blocks()]


def _asking(work: Work | None) -> Asking:
    """The method's own generator; none where there is nothing to measure."""
    if work is None or work.method.measure is None:
        return {}
    values = work.method.arguments(work.values)
    return (yield from work.method.measure(**{n: values[n] for n in work.method.measured}))


def _answers(
    wanted: Sequence[tuple[Asked, Sequence[Job]]], pool: ThreadPoolExecutor
) -> Generator[int, None, list[Any]]:
    """What each function gives over its own blocks: their sum, their list, or that of a sample."""
    tasks = [(place, *task) for place, each in enumerate(wanted) for task in _tasks(*each)]
    found: list[list[Any]] = [[] for _ in wanted]

    def take(result: tuple[int, Any]) -> None:
        place, value = result
        each, alone = found[place], not callable(wanted[place][0])
        if alone or not each:
            each.append(value if alone else value.clone())
        else:
            each[0] += value

    ends, last = [0, *accumulate(count for _, _, count in tasks)], 0
    for taken in over(pool, lambda task: (task[0], task[1]()), tasks, take):
        if ends[taken] > last:
            yield ends[taken] - last
            last = ends[taken]
    return [
        each if isinstance(want, Ordered) else each[0]
        for each, (want, _) in zip(found, wanted, strict=True)
    ]


def _tasks(want: Asked, jobs: Sequence[Job]) -> Iterator[tuple[Callable[[], Any], int]]:
    """What there is to run, each with the number of elements it goes over."""
    if isinstance(want, Sampled):
        yield partial(_sample, want.function, jobs), 0
        return
    function = want.function if isinstance(want, Ordered) else want
    for job in jobs:
        _, _, (start, stop) = job
        yield partial(_block, function, *job), stop - start


def _block(function: Callable[[Sequence[Tensor]], Any], work: Work, read: Reader, at: Block) -> Any:
    return function(work.inputs(read, *at))


def _sample(function: Callable[[Sequence[Tensor]], Any], jobs: Sequence[Job]) -> Any:
    parts = [work.inputs(read, *at) for work, read, at in _spread(jobs)]
    return function([torch.cat(pieces) for pieces in zip(*parts, strict=True)])


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


def combine(
    fillings: Sequence[Filling],
    pool: ThreadPoolExecutor,
    taken: Sequence[list[Tensor]] | None = None,
    *,
    whole: bool = False,
) -> Iterator[int]:
    """Fill the tensors, all in one; yields how many of their elements are done, now and then.

    `taken` has a list for each tensor, to which slices of some of its blocks are added: (slices,
    vectors, elements), as a `samples.Sample` has them; with `whole` the sums over all its blocks.
    Raises NotFiniteError for the first, in list order, that is not finite.
    """
    tasks = [
        (place, index, block, rows)
        for place, filling in enumerate(fillings)
        for index, block, rows in _looked_at(filling.work.blocks(), taken is not None, whole)
    ]

    def run(task: tuple[int, int, Block, int]) -> tuple[int, Tensor | None]:
        place, index, block, rows = task
        return place, _fill(fillings[place], index, block, rows, whole=whole)

    def take(result: tuple[int, Tensor | None]) -> None:
        place, found = result
        if found is None:
            raise NotFiniteError(place)
        if taken is not None and len(found):
            taken[place].append(found)

    ends = [0, *accumulate(stop - start for _, _, (start, stop), _ in tasks)]
    for count in over(pool, run, tasks, take):
        yield ends[count]


def _looked_at(
    blocks: Sequence[Block], wanted: bool, whole: bool
) -> Iterator[tuple[int, Block, int]]:
    """Each block with its place, and the slices that are taken of it: one is all of it."""
    sizes = [stop - start for start, stop in blocks]
    rows = dict.fromkeys(range(len(sizes)), 1) if whole else sampled(sizes) if wanted else {}
    for index, block in enumerate(blocks):
        yield index, block, rows.get(index, 0)


def _fill(filling: Filling, index: int, block: Block, rows: int, *, whole: bool) -> Tensor | None:
    """Merge one block; returns a sample of so many slices, or the sums over it if it is taken
    `whole`; None if it is not finite."""
    work, method, dtype = filling.work, filling.work.method, filling.dtype
    tensors, base = work.tensors(filling.read, *block)
    numbers = filling.numbers
    own = {k: v.values[index] if isinstance(v, PerBlock) else v for k, v in numbers.items()}
    starts = begins(tensors[0], rows, f"{filling.name} {index}") if rows else None
    cut = partial(slices_of, starts=starts)
    some = [*map(cut, tensors)] if rows else []  # before they are changed
    if rows and method.keep:
        some += method.keep(tensors, cut, **own)
    merged = method.combine(tensors, **method.arguments(work.values), **own).contiguous()
    if rows:
        some += map(cut, [merged] if base is None else [merged, base])
    taken = torch.stack(some, 1) if rows else torch.empty(0)
    merged = (merged if base is None else merged.add_(base)).reshape(-1)
    # the extremes tell of all: rounding keeps their order, and NaN is either's neighbour
    low, high = merged.aminmax()
    edge = min(_edge(dtype), _edge(filling.out.dtype))
    if not -edge < low.item() <= high.item() < edge:
        return None
    filling.out[slice(*block)].copy_(merged if filling.out.dtype == dtype else merged.to(dtype))
    return sums(taken, len(tensors)) if whole else taken


def _edge(dtype: torch.dtype) -> float:
    """The least magnitude that is rounded to infinity: half a step beyond the largest number.

    >>> _edge(torch.float16)
    65520.0
    """
    info = torch.finfo(dtype)
    return info.max + ldexp(info.eps, frexp(info.max)[1] - 2)
