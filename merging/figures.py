"""Numbers about deltas: how long each is, how they lie to each other, what a merge makes of them.

It takes them of tensors, whole or by short slices, and says how far a sample may be off. It draws
nothing, and knows neither files nor how a merge runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

ROWS, LENGTH = 32, 128
"""Slices that are taken of a tensor, and their elements: more of them would slow a merge down."""
BLOCKS, SPARE = 16, 2
"""Blocks of a tensor out of which they are taken at most, and at most one in so many."""


def products(deltas: Sequence[Tensor]) -> Tensor:
    """(models, models) inner products of one block of deltas, float64.

    >>> products([torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])])
    tensor([[25., 24.],
            [24., 25.]], dtype=torch.float64)
    """
    rows = torch.stack([delta.reshape(-1).double() for delta in deltas])
    return rows @ rows.T


def described(gram: Tensor, models: Sequence[str]) -> dict[str, Any]:
    """Norms and cosines out of inner products, as `inspect --json` prints them.

    A cosine with a delta of zero is None: there is no angle.
    """
    found = _lengths(gram.reshape(1, len(models), len(models)))
    return _named(found, models)


@dataclass(frozen=True)
class Sample:
    """Short slices of one tensor of `size` elements, taken while it was merged.

    `slices` is (slices, vectors, elements), float32. The vectors are the inputs of so many
    `models`, what the method kept of them if it trims, and what they became.
    """

    slices: Tensor
    size: int
    models: int


def sampled(sizes: Sequence[int]) -> dict[int, int]:
    """Of blocks of these sizes: which are sampled, and by how many slices each.

    >>> sampled([100_000] * 9 + [7])
    {0: 7, 2: 7, 4: 7, 6: 7, 8: 7}
    """
    long = [place for place, size in enumerate(sizes) if size >= ROWS * LENGTH]
    chosen = long[:: max(SPARE, -(-len(long) // BLOCKS))] or range(min(1, len(sizes)))
    return {place: -(-ROWS // len(chosen)) for place in chosen}


def slices_of(values: Tensor, rows: int) -> Tensor:
    """(rows, LENGTH) views of slices spread evenly; all of it, (1, n), where it is short."""
    size = values.numel()
    if size < ROWS * LENGTH:
        return values.view(1, -1)
    return values.as_strided((rows, LENGTH), (size // rows, 1))


def estimated(samples: Sequence[Sample], models: Sequence[str]) -> dict[str, Any]:
    """The figures of one tensor, or of several as if they were one vector, by `models`' names.

    Norms, cosines, `kept` (the share of its energy that the trim leaves to each), `conflict` (the
    share of entries, of those that all models change, in which they disagree on the sign), `chance`
    (what it would be if each drew its signs by itself), and `merged`: the norm of what they became
    and its cosine with each. `error` has one standard error of each figure, by leaving out one
    slice at a time (the jackknife), 0 where nothing was left out of the sample.
    """
    facts = _facts(samples)
    sums = [each.sum(0) for each in facts]
    scaled = [total * s.size / total[0] for total, s in zip(sums, samples, strict=True)]
    whole = torch.stack(scaled).sum(0)
    without, weights = [], []
    for sample, each, total, share in zip(samples, facts, sums, scaled, strict=True):
        unseen = 1 - float(total[0]) / sample.size
        if unseen > 0 and len(each) > 1:
            rest = total - each
            without.append(whole - share + rest * (sample.size / rest[:, :1]))
            weights.append(unseen * (len(each) - 1) / len(each))
    variance: Tensor = torch.zeros(())
    if without:
        found = torch.split(
            _figures(torch.cat(without), len(models)), [len(rows) for rows in without]
        )
        spread = [(rows - rows.mean(0)).square().sum(0) for rows in found]
        variance = torch.stack([s * w for s, w in zip(spread, weights, strict=True)]).sum(0)
    value = _figures(whole[None], len(models))
    error = variance.sqrt().expand_as(value)
    return {**_named(value, models), "error": _named(error, models)}


def _facts(samples: Sequence[Sample]) -> list[Tensor]:
    """`_sums` of each, those of one shape together: there are hundreds, and each is small."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, sample in enumerate(samples):
        shapes.setdefault((*sample.slices.shape, sample.models), []).append(place)
    found: dict[int, Tensor] = {}
    for (*_, models), places in shapes.items():
        together = torch.stack([samples[place].slices for place in places])
        sums = _sums(together.flatten(0, 1), models).view(*together.shape[:2], -1)
        found.update(zip(places, sums, strict=True))
    return [found[place] for place in range(len(samples))]


def _sums(slices: Tensor, models: int) -> Tensor:
    """(rows, …) float64 sums over each row of `slices`.

    They are: the elements; the entries in which no input is 0, those of them where the signs
    differ, those where each input is positive; the vectors' inner products.
    """
    vectors = slices.double()
    signs = vectors[:, :models].sign()
    moved = signs.prod(1).abs()
    differ = moved * (signs.sum(1).abs() != models)
    positive = (signs.clamp(min=0) * moved[:, None]).sum(2)
    elements = torch.full_like(moved[:, :1], slices.shape[2])
    counts = [elements, moved.sum(1, keepdim=True), differ.sum(1, keepdim=True), positive]
    return torch.cat([*counts, (vectors @ vectors.transpose(1, 2)).flatten(1)], 1)


def _figures(sums: Tensor, models: int) -> Tensor:
    """(rows, figures) out of (rows, sums), in the order in which `_named` reads them."""
    both, differ, *positive = sums[:, 1 : 3 + models].T
    gram = sums[:, 3 + models :]
    side = round(gram.shape[1] ** 0.5)
    gram = gram.view(-1, side, side)
    lengths = _lengths(gram[:, :models, :models])
    kept = gram.diagonal(dim1=1, dim2=2)[:, models : 2 * models] if side > models + 1 else None
    own = gram.diagonal(dim1=1, dim2=2)[:, :models]
    norm = gram[:, -1, -1].sqrt()
    cosines = gram[:, -1, :models] / (norm[:, None] * own.sqrt())
    drawn = torch.stack([count / both for count in positive], 1)
    chance = 1 - drawn.prod(1) - (1 - drawn).prod(1)
    share = torch.ones_like(own) if kept is None else kept / own
    return torch.cat(
        [lengths, share, norm[:, None], cosines, (differ / both)[:, None], chance[:, None]], 1
    )


def _lengths(gram: Tensor) -> Tensor:
    """(rows, models + pairs): norms, then cosines, NaN where there is no angle."""
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    pairs = list(combinations(range(gram.shape[1]), 2))
    cosines = [gram[:, i, j] / (norms[:, i] * norms[:, j]) for i, j in pairs]
    return torch.cat([norms, *(c[:, None] for c in cosines)], 1)


def _named(row: Tensor, models: Sequence[str]) -> dict[str, Any]:
    """One row of figures, by name; None for what is not defined."""
    values = iter(None if v != v else v for v in row[0].tolist())
    found: dict[str, Any] = {
        "norm": {model: next(values) for model in models},
        "cosine": [
            {"models": list(pair), "value": next(values)} for pair in combinations(models, 2)
        ],
    }
    if row.shape[1] > len(models) + len(found["cosine"]):
        found["kept"] = {model: next(values) for model in models}
        found["merged"] = {"norm": next(values), "cosine": {m: next(values) for m in models}}
        found["conflict"], found["chance"] = next(values), next(values)
    return found
