"""What a merge takes of each tensor on its way, whole or by short slices, and the sums over it.

The sums add up over the parts of a tensor and over tensors; what they say is the affair of
`figures`. It knows neither files nor how a merge runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

ROWS, LENGTH = 32, 128
"""Slices that are taken of a tensor, and their elements: more of them would slow a merge down."""
BLOCKS = 16
"""Blocks of a tensor out of which they are taken at most."""


@dataclass(frozen=True)
class Sample:
    """Short slices of one tensor of `size` elements, taken while it was merged.

    `slices` is (slices, vectors, elements), float32. The vectors are the inputs of so many
    `models`, what the method kept of them if it trims, what they became, and, if they are `based`,
    the base that they are deltas to. `outcome` names the formula of a method that has several.
    """

    slices: Tensor
    size: int
    models: int
    based: bool
    outcome: str | None = None


@dataclass(frozen=True)
class Sums:
    """What `sums` gives for parts of one tensor of `size` elements: (parts, sums), float64."""

    rows: Tensor
    size: int
    models: int
    based: bool
    outcome: str | None = None


def sampled(sizes: Sequence[int]) -> dict[int, int]:
    """Of blocks of these sizes: which are sampled, and by how many slices each.

    >>> sampled([100_000] * 9 + [7])
    {0: 4, 1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4, 7: 4, 8: 4}
    """
    long = [place for place, size in enumerate(sizes) if size >= ROWS * LENGTH]
    chosen = long[:: max(1, -(-len(long) // BLOCKS))] or range(min(1, len(sizes)))
    return {place: -(-ROWS // len(chosen)) for place in chosen}


def begins(block: Tensor, rows: int, seed: str) -> Tensor | None:
    """Where slices of a block begin, (rows,): one anywhere in each of so many like parts of it.

    Evenly spaced they would see the same few columns of a matrix whose width is a power of two.
    The same `seed` gives the same places. None, for all of it, where it is short or `rows` is 1.
    """
    if rows == 1 or block.numel() < ROWS * LENGTH:
        return None
    part, drawn = block.numel() // rows, Random(seed)
    found = [row * part + drawn.randrange(part - LENGTH + 1) for row in range(rows)]
    return torch.tensor(found, device=block.device)


def slices_of(values: Tensor, starts: Tensor | None) -> Tensor:
    """A copy of the slices that begin there, (starts, LENGTH); of all, (1, n), if none do."""
    if starts is None:
        return values.reshape(1, -1).clone()
    return values.reshape(-1).unfold(0, LENGTH, 1).index_select(0, starts)


def summed(samples: Mapping[str, Sample]) -> dict[str, Sums]:
    """The sums of each, those of one shape together: there are hundreds, and each is small."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, sample in samples.items():
        shapes.setdefault((*sample.slices.shape, sample.models), []).append(name)
    found: dict[str, Tensor] = {}
    for (*_, models), names in shapes.items():
        together = torch.stack([samples[name].slices for name in names])
        rows = sums(together.flatten(0, 1), models).view(*together.shape[:2], -1)
        found.update(zip(names, rows, strict=True))
    return {n: Sums(found[n], s.size, s.models, s.based, s.outcome) for n, s in samples.items()}


def sums(slices: Tensor, models: int) -> Tensor:
    """(rows, …) float64 sums over each row of slices, (rows, vectors, elements).

    They are: the elements; the entries in which no input is 0, those of them where the signs
    differ, those where each input is positive; the vectors' inner products.
    """
    vectors = slices.double()
    signs = vectors[:, :models].sign()
    moved = signs.prod(1).abs()
    differ = moved * (signs.sum(1).abs() != models)
    positive = (signs.clamp(min=0) * moved[:, None]).sum(2)
    elements = vectors.new_full((len(vectors), 1), slices.shape[2])
    counts = [elements, moved.sum(1, keepdim=True), differ.sum(1, keepdim=True), positive]
    return torch.cat([*counts, (vectors @ vectors.transpose(1, 2)).flatten(1)], 1)
