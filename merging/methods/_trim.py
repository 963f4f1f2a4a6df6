"""Trimming a delta to its largest entries, block by block, exactly; knows no merge method.

Exactly k entries stay, for mergekit k = max(1, int(density·n)). Among equal magnitudes the lowest
flat index wins, which matters: of bf16 parents up to 15 % of them equal the threshold.

A float32 magnitude read as an integer keeps its order. A sample says between which two magnitudes
the k-th largest must lie, and one pass counts those above and gathers the few between. Where the
sample misled, or hardly two magnitudes differ, two histograms find it: one over its top 16 bits,
one over the low 15 bits inside the bin that holds it.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from merging.methods._method import Asking, BlockFunction, Ordered, PerBlock, Sampled

LOW_BITS = 15
TOP, LOW = 1 << 16, 1 << LOW_BITS
NONE = 0x7FFFFFFF
"""A threshold that no finite magnitude reaches."""
SIGMAS, SHARE = 6, 0.01
"""How far from the sample's quantile the k-th largest may lie: standard errors, and at least this
share of the sample, since neighbours in a tensor are alike.
"""
MANY = 8
"""A block of which more than one entry in so many lies between is too much to gather."""

Count = Callable[[float, int], int]
"""How many of so many entries a density keeps."""


def kept(density: float, size: int) -> int:
    """How many of `size` entries a density keeps.

    >>> kept(0.5, 5), kept(0.01, 5), kept(0, 5), kept(1, 5)
    (2, 1, 0, 5)
    """
    if density <= 0:
        return 0
    return size if density >= 1 else max(1, int(density * size))


def magnitude(delta: Tensor) -> Tensor:
    """|δ| as int32, in the same order as the float32 magnitudes."""
    return delta.contiguous().view(torch.int32) & NONE


def top_bits(deltas: Sequence[Tensor]) -> Tensor:
    """(models, 65536) counts of the magnitudes' top 16 bits."""
    return torch.stack([(magnitude(d) >> LOW_BITS).bincount(minlength=TOP) for d in deltas])


def low_bits(deltas: Sequence[Tensor], bins: Sequence[int]) -> Tensor:
    """(models, 32768) counts of the low 15 bits of those whose top bits are `bins`."""
    rows = []
    for delta, top in zip(deltas, bins, strict=True):
        bits = magnitude(delta)
        inside = bits[(bits >> LOW_BITS) == top] & (LOW - 1)
        rows.append(inside.bincount(minlength=LOW))
    return torch.stack(rows)


def equals(deltas: Sequence[Tensor], thresholds: Sequence[int]) -> Tensor:
    """(models,) counts of the magnitudes that equal the threshold."""
    found = [(magnitude(d) == t).sum() for d, t in zip(deltas, thresholds, strict=True)]
    return torch.stack(found)


class Near(NamedTuple):
    """Of one model's block: entries, those above the upper bound, those equal to it, the magnitudes
    strictly between both bounds, in order, None where they are too many, and those equal to the
    lower bound. Equals are counted, since of bf16 models any magnitude may be that of millions.
    """

    size: int
    above: int
    at_high: int
    between: np.ndarray | None
    at_low: int


def all_magnitudes(deltas: Sequence[Tensor]) -> list[np.ndarray]:
    return [magnitude(delta).cpu().numpy() for delta in deltas]


def near(deltas: Sequence[Tensor], bounds: Sequence[tuple[int, int]]) -> list[Near]:
    """For each model, what lies above, at and between its bounds."""
    return [_near(magnitude(d), *pair) for d, pair in zip(deltas, bounds, strict=True)]


def _near(bits: Tensor, low: int, high: int) -> Near:
    choose = _chosen_on_cpu if bits.device.type == "cpu" else _chosen
    above, at_high, between, at_low = choose(bits, low, high)
    few = len(between) <= max(len(bits) // MANY, LOW)
    return Near(len(bits), above, at_high, between if few else None, at_low)


def _chosen(bits: Tensor, low: int, high: int) -> tuple[int, int, np.ndarray, int]:
    """`Near` without its size: numbers above and at the upper bound, what is between, at the lower.

    Equal bounds have nothing at the lower one.
    """
    between = bits[(bits > low) & (bits < high)].cpu().numpy()
    above, at_high, at_low = bits > high, bits == high, (bits == low) & (bits < high)
    return int(above.sum()), int(at_high.sum()), between, int(at_low.sum())


def _chosen_on_cpu(bits: Tensor, low: int, high: int) -> tuple[int, int, np.ndarray, int]:
    """The same by numpy, which compares and selects several times faster there."""
    values, count = bits.numpy(), np.count_nonzero
    # as unsigned, what is not above the lower bound wraps round to the largest of all
    inside = values.view(np.uint32) - np.uint32(low + 1) < np.uint32(max(0, high - low - 1))
    between = values.take(np.flatnonzero(inside))
    at_low = int(count(values == low)) if low < high else 0
    return int(count(values > high)), int(count(values == high)), between, at_low


def _bounds(sample: np.ndarray, density: float) -> tuple[int, int]:
    """Two magnitudes between which the threshold lies, if the sample is a fair one."""
    if density <= 0 or density >= 1:
        return NONE, NONE
    size, place = len(sample), density * len(sample)
    margin = ceil(max(SIGMAS * sqrt(place * (1 - density)), SHARE * size)) + 1
    low, high = max(0, size - int(place) - margin), min(size - 1, size - int(place) + margin)
    ordered = np.partition(sample, (low, high))
    return int(ordered[low]) if low else 0, int(ordered[high]) if high < size - 1 else NONE - 1


def _found(
    blocks: Sequence[Near], count: Count, density: float, bounds: tuple[int, int]
) -> tuple[int, list[int | None]] | None:
    """A model's threshold, and of its equals how many each block may keep, None for all of them.

    None if the threshold is neither at its bounds nor between them.
    """
    size = sum(block.size for block in blocks)
    wanted = count(density, size)
    if wanted in (0, size):
        return NONE if wanted == 0 else 0, [None] * len(blocks)
    low, high = bounds
    left = wanted - sum(block.above for block in blocks)
    if left <= 0:
        return None
    at_high = [block.at_high for block in blocks]
    if left <= sum(at_high):
        return high, _shared(left, at_high)
    left -= sum(at_high)
    between = [block.between for block in blocks if block.between is not None]
    if len(between) < len(blocks):
        return None
    inside = np.concatenate(between)
    if left > len(inside):
        at_low, left = [block.at_low for block in blocks], left - len(inside)
        return (low, _shared(left, at_low)) if left <= sum(at_low) else None
    place = len(inside) - left  # from the smallest
    threshold = int(np.partition(inside, place)[place])
    left -= int(np.count_nonzero(inside > threshold))
    return threshold, _shared(left, [int(np.count_nonzero(v == threshold)) for v in between])


def _shared(left: int, there: Sequence[int]) -> list[int | None]:
    """How many of those `there` each block may keep, if `left` may stay in all; None for all."""
    spare: list[int | None] = []
    for count in there:
        spare.append(None if count <= left else left)
        left -= min(left, count)
    return spare


def measure(density: Sequence[float]) -> Asking:
    """The numbers of `exactly` for as many entries as mergekit keeps."""
    return (yield from exactly(density, kept))


def exactly(density: Sequence[float], count: Count) -> Asking:
    """Each model's `threshold`, and in `spare` how many that equal it each block may keep.

    Thresholds are magnitudes as int32; `spare` is a list (models) for each block, None for all that
    equal it. `count` says how many stay: all at a density of 1, none at 0.
    """
    if all(d >= 1 or d <= 0 for d in density):
        return {"threshold": [0 if d > 0 else NONE for d in density], "spare": None}
    samples = yield Sampled(all_magnitudes)
    bounds = [_bounds(sample, d) for sample, d in zip(samples, density, strict=True)]
    blocks = yield Ordered(partial(near, bounds=bounds))
    found = [
        _found(model, count, d, pair)
        for model, d, pair in zip(zip(*blocks, strict=True), density, bounds, strict=True)
    ]
    sure = [each for each in found if each is not None]
    if len(sure) == len(found):
        threshold = [each[0] for each in sure]
        spare = [list(left) for left in zip(*(each[1] for each in sure), strict=True)]
        return {"threshold": threshold, "spare": PerBlock(spare)}
    return (yield from _by_histograms(density, count))


def _by_histograms(density: Sequence[float], count: Count) -> Asking:
    threshold, spare = yield from thresholds(density, count)
    at = torch.stack((yield Ordered(partial(equals, thresholds=threshold)))).T.tolist()
    shared = [_shared(left, there) for left, there in zip(spare, at, strict=True)]
    return {
        "threshold": threshold,
        "spare": PerBlock([list(left) for left in zip(*shared, strict=True)]),
    }


def thresholds(
    density: Sequence[float], count: Count
) -> Generator[BlockFunction, Tensor, tuple[list[int], list[int]]]:
    """Each model's `count`-th largest magnitude as int32, and how many that equal it belong to it.

    The threshold is `NONE` where none is to stay, and 0 where all are.
    """
    tops = (yield top_bits).cpu()
    sizes = tops.sum(1).tolist()
    wanted = [count(d, size) for d, size in zip(density, sizes, strict=True)]
    bins, above = _kth(tops, wanted)
    lows = (yield partial(low_bits, bins=bins)).cpu()
    inside, above_inside = _kth(lows, [w - a for w, a in zip(wanted, above, strict=True)])
    threshold = [(b << LOW_BITS) | i for b, i in zip(bins, inside, strict=True)]
    spare = [w - a - i for w, a, i in zip(wanted, above, above_inside, strict=True)]
    for model, (w, size) in enumerate(zip(wanted, sizes, strict=True)):
        if w in (0, size):  # nothing or everything stays: no threshold to share
            threshold[model], spare[model] = (NONE, 0) if w == 0 else (0, size)
    return threshold, spare


def trim(delta: Tensor, threshold: int, spare: int | None) -> Tensor:
    """Zero all but the entries above `threshold` and the first `spare` that equal it.

    `spare` None keeps every equal one.

    >>> trim(torch.tensor([1.0, -3.0, 2.0, 2.0]), int(magnitude(torch.tensor(2.0))), 1)
    tensor([ 0., -3.,  2.,  0.])
    """
    if threshold == NONE:
        return torch.zeros_like(delta)
    if threshold == 0:
        return delta  # what equals it is 0 already
    # a comparison and a choice take ten times as long as this
    trimmed = hardshrink(delta, as_float(threshold - (spare is None)))
    if spare:  # equals stay up to some place: quicker than to put each of them back
        end = int(_places(magnitude(delta) == threshold)[spare - 1]) + 1
        trimmed[:end] = hardshrink(delta[:end], as_float(threshold - 1))
    return trimmed


def _places(there: Tensor) -> np.ndarray | Tensor:
    """The flat indices at which it is true; on a CPU by numpy, which is several times faster."""
    return np.flatnonzero(there.numpy()) if there.device.type == "cpu" else there.nonzero()[:, 0]


def as_float(bits: int) -> float:
    """A magnitude's own value."""
    return float(np.int32(bits).view(np.float32))


def trim_each(
    deltas: Sequence[Tensor], threshold: Sequence[int], spare: Sequence[int | None] | None
) -> list[Tensor]:
    """`trim` for each model, with the numbers that `exactly` found."""
    spares: Sequence[int | None] = spare or [None] * len(deltas)
    return [trim(d, at, left) for d, at, left in zip(deltas, threshold, spares, strict=True)]


def keep(
    deltas: Sequence[Tensor],
    cut: Callable[[Tensor], Tensor],
    *,
    threshold: Sequence[int],
    spare: Sequence[int | None] | None = None,
    **_others: object,
) -> list[Tensor]:
    """What `cut` takes of each delta, trimmed by the numbers of a method that trims."""
    spares: Sequence[int | None] = spare or [None] * len(deltas)
    return [  # only where some of the equals stay must all of it be seen
        cut(trim(delta.flatten(), at, left)) if left else trim(cut(delta), at, left)
        for delta, at, left in zip(deltas, threshold, spares, strict=True)
    ]


def _kth(counts: Tensor, wanted: Sequence[int]) -> tuple[list[int], list[int]]:
    """Per row: the bin that holds the `wanted`-th largest, and how many lie in bins above it."""
    bins, above = [], []
    for row, k in zip(counts, wanted, strict=True):
        down = row.flip(0).cumsum(0)  # how many lie in the i topmost bins
        place = int(torch.searchsorted(down, max(k, 1)).clamp(max=len(row) - 1))
        bins.append(len(row) - 1 - place)
        above.append(int(down[place - 1]) if place else 0)
    return bins, above
