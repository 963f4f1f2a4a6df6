"""Numbers about deltas: how long each is, how they lie to each other, what a merge makes of them.

It works them out of the sums over tensors, whole or sampled, and says how far a sample may be off.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import acos, degrees, isfinite
from typing import Any

import torch
from torch import Tensor

from merging.samples import Sums


def estimated(found: Sequence[Sums], models: Sequence[str]) -> dict[str, Any]:
    """The figures of one tensor, or of several as if they were one vector, by `models`' names.

    Of the inputs, which are deltas or, without a base, weights: `norm` and `cosine`; `kept`, the
    share of its energy that the trim leaves to each; `conflict`, the share of entries, of those
    that all models change, in which they disagree on the sign; `chance`, what it would be if each
    drew its signs by itself. `merged` is what they became: its norm, its cosine with each, and
    `retained`, the part <δm, δi>/‖δi‖² of each that is left. With a base, `size` is each delta's
    length as a part of the base's; without one, `apart` is a difference's as a part of the first's.
    `error` has one standard error of each, by leaving out one slice at a time (the jackknife), 0
    where nothing was left out of the sample. Of a method with several formulas, `formulas` counts
    the tensors of each.
    """
    whole = grouped(found, [0] * len(found), models)[0]
    formulas = Counter(each.outcome for each in found if each.outcome)
    return {**whole, "formulas": dict(formulas)} if formulas else whole


def grouped(
    found: Sequence[Sums], groups: Sequence[int], models: Sequence[str], *, errors: bool = True
) -> list[dict[str, Any]]:
    """The figures of each group of tensors; `groups` has each tensor's group, counted from 0.

    Without `errors`, which take most of the time, they are all 0.
    """
    based, group = found[0].based, torch.tensor(groups)
    values, sizes = _totals(found)
    scaled = values * (sizes / values[:, :1])
    whole = _added(scaled, group, max(groups) + 1)
    value = _figures(whole, len(models), based)
    variance = torch.zeros_like(value)
    places = [n for n, each in enumerate(found) if len(each.rows) > 1 and values[n, 0] < each.size]
    if places and errors:
        rows = torch.cat([found[n].rows for n in places])
        owner = torch.tensor([n for n in places for _ in found[n].rows])
        rest = values[owner] - rows
        without = whole[group[owner]] - scaled[owner] + rest * (sizes[owner] / rest[:, :1])
        counts = torch.bincount(owner, minlength=len(found)).double()[:, None]
        each = _figures(without, len(models), based)
        off = each - (_added(each, owner, len(found)) / counts)[owner]
        unseen = (1 - values[:, :1] / sizes) * (counts - 1) / counts
        variance = _added(off.square() * unseen[owner], group[owner], len(whole))
    return [
        {**_named(row, models, based), "error": _named(error, models, based)}
        for row, error in zip(value.tolist(), variance.sqrt().tolist(), strict=True)
    ]


def distances(found: Mapping[str, Sums]) -> dict[str, tuple[float, float]]:
    """Of each tensor the squared distance between the two inputs that lie farthest from each other,
    or, of deltas, of one from the base; and the squared length of the base, or the models' mean."""
    alike: dict[tuple[int, bool], list[str]] = {}
    for name, each in found.items():
        alike.setdefault((each.models, each.based), []).append(name)
    farthest: dict[str, tuple[float, float]] = {}
    for (models, based), names in alike.items():
        values, sizes = _totals([found[name] for name in names])
        every = _gram(values * (sizes / values[:, :1]), models)
        gram = every[:, :models, :models]
        own = gram.diagonal(dim1=1, dim2=2)
        between = (own[:, :, None] + own[:, None] - 2 * gram).flatten(1)
        rows = torch.cat([between, own], 1) if based else between
        lengths = every[:, -1, -1] if based else own.mean(1)
        pairs = zip(rows.amax(1).clamp(min=0).tolist(), lengths.tolist(), strict=True)
        farthest.update(zip(names, pairs, strict=True))
    return farthest


def _totals(found: Sequence[Sums]) -> tuple[Tensor, Tensor]:
    """(tensors, sums) of what was taken of each, and (tensors, 1) elements that there are."""
    values = torch.stack([each.rows.sum(0) for each in found])
    return values, values.new_tensor([each.size for each in found])[:, None]


def angle(cosine: float | None) -> float | None:
    """In degrees; None where there is none.

    >>> angle(0.0), angle(None)
    (90.0, None)
    """
    return None if cosine is None else degrees(acos(max(-1.0, min(1.0, cosine))))


def angles(cosines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The angle of each pair whose cosine is given."""
    return [{**pair, "value": angle(pair["value"])} for pair in cosines]


def length(figures: Mapping[str, Any]) -> float | None:
    """The merged vector's length as a part of the models' mean; None where they have none."""
    own = [*figures["norm"].values()]
    mean = sum(own) / len(own)
    return figures["merged"]["norm"] / mean if mean else None


def _added(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """(groups, …) sums of the rows of each group."""
    return rows.new_zeros(groups, rows.shape[1]).index_add_(0, group, rows)


def _figures(sums: Tensor, models: int, based: bool) -> Tensor:
    """(rows, figures) out of (rows, sums), in the order in which `_named` reads them."""
    both, differ, *positive = sums[:, 1 : 3 + models].T
    gram = _gram(sums, models)
    squares = gram.diagonal(dim1=1, dim2=2)
    own, last = squares[:, :models], gram.shape[1] - 1 - based
    norms, merged, with_each = own.sqrt(), squares[:, last].sqrt(), gram[:, last, :models]
    pairs = list(combinations(range(models), 2))
    cosines = [gram[:, i, j] / (norms[:, i] * norms[:, j]) for i, j in pairs]
    drawn = torch.stack([count / both for count in positive], 1)
    chance = 1 - drawn.prod(1) - (1 - drawn).prod(1)
    share = squares[:, models : 2 * models] / own if last > models else torch.ones_like(own)
    if based:
        sizes = [norms / squares[:, -1:].sqrt()]
    else:
        between = [own[:, i] + own[:, j] - 2 * gram[:, i, j] for i, j in pairs]
        firsts = [own[:, i] for i, _ in pairs]
        sizes = [(b.clamp(min=0) / f).sqrt()[:, None] for b, f in zip(between, firsts, strict=True)]
    parts = [norms, *(c[:, None] for c in cosines), share, merged[:, None],
             with_each / (merged[:, None] * norms), with_each / own,
             (differ / both)[:, None], chance[:, None], *sizes]  # fmt: skip
    return torch.cat(parts, 1)


def _gram(sums: Tensor, models: int) -> Tensor:
    """(rows, vectors, vectors) inner products."""
    products = sums[:, 3 + models :]
    side = round(products.shape[1] ** 0.5)
    return products.reshape(-1, side, side)


def _named(row: Sequence[float], models: Sequence[str], based: bool) -> dict[str, Any]:
    """One row of figures, by name; None for what is not defined."""
    values = iter(v if isfinite(v) else None for v in row)
    return {
        "norm": _each(values, models),
        "cosine": _pairs(values, models),
        "kept": _each(values, models),
        "merged": {
            "norm": next(values),
            "cosine": _each(values, models),
            "retained": _each(values, models),
        },
        "conflict": next(values),
        "chance": next(values),
        **({"size": _each(values, models)} if based else {"apart": _pairs(values, models)}),
    }


def _each(values: Iterator[float | None], models: Sequence[str]) -> dict[str, float | None]:
    return {model: next(values) for model in models}


def _pairs(values: Iterator[float | None], models: Sequence[str]) -> list[dict[str, Any]]:
    return [{"models": list(pair), "value": next(values)} for pair in combinations(models, 2)]
