"""TIES: trim each delta, elect one sign per entry, merge the deltas that agree (arXiv:2306.01708).

The rules are mergekit's: trim per tensor, weights before the vote, division by the kept weights.
`ties_paper` and `ties_peft` are the other two in use.
"""

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import Annotated

import torch
from torch import Tensor

from merging.methods import _trim
from merging.methods._method import Asking, Number, Stage, Switch, listed, method
from merging.methods._trim import trim_each
from merging.methods._weights import times

EMPTY = 1e-7
"""A delta of a smaller sum is not stretched."""
TRIMMED = "Density {} keeps the largest changes; the others become 0."
ELECTED = "The changes of each entry are added up, and the sign of the sum wins."
KEPT = "Changes with the other sign drop out."
"""What is told of the steps that all variants have."""


def measure(density: Sequence[float], rescale: bool) -> Asking:
    """The trim's `threshold` and `spare`, and each model's `stretch`, 1 unless `rescale`."""
    found = yield from _trim.measure(density)
    stretch = [1.0] * len(density)
    if rescale:
        facts = (yield partial(sums, threshold=found["threshold"])).tolist()
        for model, (before, above, over, size) in enumerate(zip(*facts, strict=True)):
            equal = _trim.kept(density[model], int(size)) - over  # of those at the threshold
            after = above + equal * _trim.as_float(found["threshold"][model]) if equal else above
            stretch[model] = before / after if min(before, after) >= EMPTY else 1.0
    return found | {"stretch": stretch}


def sums(deltas: Sequence[Tensor], threshold: Sequence[int]) -> Tensor:
    """(4, models) float64: sums of |δ|, of all and of those above the threshold, their number, and
    that of all.
    """
    rows = []
    for delta, at in zip(deltas, threshold, strict=True):
        over = _trim.trim(delta, at, 0).double()
        facts = [delta.double().abs().sum(), over.abs().sum(), over.count_nonzero()]
        rows.append(torch.stack([*facts, torch.tensor(delta.numel(), device=delta.device)]))
    return torch.stack(rows, 1)


@method(
    "TIES",
    help="Keeps each model's largest changes, votes on their sign, merges those that agree.",
    paper="https://arxiv.org/abs/2306.01708",
    space="deltas",
    base="required",
    models=(1, 3),
    measure=measure,
    keep=_trim.keep,
)
def ties(  # noqa: PLR0913  # five parameters as mergekit has them, three numbers
    deltas: Sequence[Tensor],
    weight: Annotated[Sequence[float], Number("share of this model in vote and sum", 1, 1, 0, 2)],
    density: Annotated[
        Sequence[float], Number("part of the changes that is kept", 1, 0.5, 0, 1, (0, 1))
    ],
    lambda_: Annotated[float, Number("length of the merged step", 1, 1, 0, 3)],
    normalize: Annotated[bool, Switch("divide by the weights of those that agree", True)],
    rescale: Annotated[  # noqa: ARG001  # `measure` reads it, and hands over a stretch
        bool, Switch("stretch what the trim keeps to the sum it had", False)
    ],
    *,
    threshold: Sequence[int],
    spare: Sequence[int | None] | None,
    stretch: Sequence[float],
) -> Iterator[Stage]:
    """λ·(disjoint merge of the trimmed, stretched, weighted deltas)."""
    trimmed = trim_each(deltas, threshold, spare)
    yield Stage("Trimmed", TRIMMED.format(listed(density)), trimmed)
    factors = [s * w for s, w in zip(stretch, weight, strict=True)]
    weighted = [times(d, factor) for d, factor in zip(trimmed, factors, strict=True)]
    if set(factors) != {1}:
        yield Stage("Weighted", f"What is left counts {listed(factors)} times.", weighted)
    sign = elect(weighted)
    yield Stage("Elected sign", ELECTED, sign)
    agreed = [agreeing(entries, sign) for entries in weighted]
    yield Stage("Kept", KEPT, agreed, sign)
    over = ", over the weights of its models" if normalize else ""
    merged = times(disjoint_merge(agreed, sign, weight, normalize), lambda_)
    yield Stage("Merged", f"The sum of what is left{over}, times lambda {lambda_:g}.", merged)


def elect(weighted: Sequence[Tensor], draw: bool = True) -> Tensor:
    """1 where the entries add up to more than 0, -1 where to less; `draw`: 1 where to exactly 0.

    >>> elect([torch.tensor([1.0, -2.0, 3.0]), torch.tensor([-1.0, 1.0, 0.0])])
    tensor([ 1., -1.,  1.])
    """
    return reduce(torch.add, weighted).sign().add_(0.5 if draw else -0.5).sign_()


def agreeing(entries: Tensor, sign: Tensor) -> Tensor:
    """The magnitudes of the entries that have the elected sign, 0 for the others.

    >>> agreeing(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]))
    tensor([1., 0., 0.])
    """
    return (entries * sign).relu_()


def disjoint_merge(
    agreed: Sequence[Tensor], sign: Tensor, weight: Sequence[float], normalize: bool
) -> Tensor:
    """The sum of what `agreeing` left, over the sum of its weights; writes into `agreed`.

    >>> one, other = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    >>> disjoint_merge([one, other], torch.tensor([1.0, -1.0]), [1, 1], True)
    tensor([ 2., -2.])
    """
    total, *others = agreed
    share = times(total.sign(), weight[0]) if normalize else None
    for own, w in zip(others, weight[1:], strict=True):
        total.add_(own)
        if share is not None:
            share.add_(own.sign_(), alpha=w)
    if share is not None:
        total.div_(_no_zero(share, weight))
    return total.mul_(sign)


def _no_zero(share: Tensor, weight: Sequence[float]) -> Tensor:
    """1 in place of 0. Where all weights are above 0, a share of 0 is of entries of 0 alone, and
    any divisor does, which spares a slow choice.
    """
    if min(weight) > 0:
        return share.clamp_(min=min(weight))
    return share.masked_fill_(share == 0, 1)
