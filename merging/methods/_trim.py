"""Trimming a delta to its largest entries, block by block, exactly; knows no merge method.

Exactly k entries stay, for mergekit k = max(1, int(density·n)). Among equal magnitudes the lowest
flat index wins, which matters: of bf16 parents up to 15 % of them equal the threshold.

A float32 magnitude read as an integer keeps its order, so two histograms find the k-th largest:
one over its top 16 bits, one over the low 15 bits inside the bin that holds it.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from merging.methods._method import BlockFunction, Ordered, PerBlock

LOW_BITS = 15
TOP, LOW = 1 << 16, 1 << LOW_BITS
NONE = 0x7FFFFFFF
"""A threshold that no finite magnitude reaches."""

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


def measure(density: Sequence[float]) -> Generator[BlockFunction | Ordered, Any, dict[str, Any]]:
    """The numbers of `exactly` for as many entries as mergekit keeps."""
    return (yield from exactly(density, kept))


def exactly(
    density: Sequence[float], count: Count
) -> Generator[BlockFunction | Ordered, Any, dict[str, Any]]:
    """Each model's `threshold`, and in `spare` how many that equal it each block may keep.

    Thresholds are magnitudes as int32; `spare` is a list (models) for each block. `count` says how
    many stay: all at a density of 1, none at 0.
    """
    if all(d >= 1 or d <= 0 for d in density):
        return {"threshold": [0 if d > 0 else NONE for d in density], "spare": None}
    threshold, spare = yield from thresholds(density, count)
    at = torch.stack((yield Ordered(partial(equals, thresholds=threshold)))).cpu()
    before = at.cumsum(0) - at
    left = (torch.tensor(spare) - before).clamp(min=0)
    return {"threshold": threshold, "spare": PerBlock(torch.minimum(left, at).tolist())}


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


def at_threshold(found: dict[str, Any]) -> list[float]:
    """The sum of each model's kept entries that equal its threshold, from `exactly`'s numbers."""
    values = torch.tensor(found["threshold"], dtype=torch.int32).view(torch.float32)
    spare = found["spare"]
    counts = torch.tensor(spare.values).sum(0) if spare else torch.zeros(len(values))
    return torch.where(counts > 0, values.double() * counts, 0.0).tolist()


def trim(delta: Tensor, threshold: int, spare: int | None) -> Tensor:
    """Zero all but the entries above `threshold` and the first `spare` that equal it.

    `spare` None keeps every equal one.

    >>> trim(torch.tensor([1.0, -3.0, 2.0, 2.0]), int(magnitude(torch.tensor(2.0))), 1)
    tensor([ 0., -3.,  2.,  0.])
    """
    bits = magnitude(delta)
    if spare is None:
        return delta * (bits >= threshold)
    keep = bits > threshold
    if spare:
        keep[(bits == threshold).nonzero()[:spare, 0]] = True
    return delta * keep


def trim_each(
    deltas: Sequence[Tensor], threshold: Sequence[int], spare: Sequence[int] | None
) -> list[Tensor]:
    """`trim` for each model, with the numbers that `exactly` found."""
    spares: Sequence[int | None] = spare or [None] * len(deltas)
    return [trim(d, at, left) for d, at, left in zip(deltas, threshold, spares, strict=True)]


def _kth(counts: Tensor, wanted: Sequence[int]) -> tuple[list[int], list[int]]:
    """Per row: the bin that holds the `wanted`-th largest, and how many lie in bins above it."""
    bins, above = [], []
    for row, k in zip(counts, wanted, strict=True):
        down = row.flip(0).cumsum(0)  # how many lie in the i topmost bins
        place = int(torch.searchsorted(down, max(k, 1)).clamp(max=len(row) - 1))
        bins.append(len(row) - 1 - place)
        above.append(int(down[place - 1]) if place else 0)
    return bins, above
