"""TIES: trim each delta, elect one sign per entry, merge the deltas that agree (arXiv:2306.01708).

The rules are mergekit's: trim per tensor, weights before the vote, division by the kept weights.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from merging.methods._method import Number, Switch, method
from merging.methods._trim import measure, trim


@method(
    "TIES",
    help="Keeps each model's largest changes, votes on their sign, merges those that agree.",
    paper="https://arxiv.org/abs/2306.01708",
    space="deltas",
    base="required",
    models=(1, 3),
    measure=measure,
)
def ties(  # noqa: PLR0913  # four parameters as mergekit has them, two numbers of the trim
    deltas: Sequence[Tensor],
    weight: Annotated[Sequence[float], Number("share of this model in vote and sum", 1, 1, 0, 2)],
    density: Annotated[  # noqa: ARG001  # `measure` reads it, and hands over a threshold
        Sequence[float], Number("part of the changes that is kept", 1, 0.5, 0, 1, (0, 1))
    ],
    lambda_: Annotated[float, Number("length of the merged step", 1, 1, 0, 3)],
    normalize: Annotated[bool, Switch("divide by the weights of those that agree", True)],
    *,
    threshold: Sequence[int],
    spare: Sequence[int] | None,
) -> Tensor:
    """λ·(disjoint merge of the trimmed, weighted deltas)."""
    spares: Sequence[int | None] = spare or [None] * len(deltas)
    trimmed = [trim(d, at, left) for d, at, left in zip(deltas, threshold, spares, strict=True)]
    weighted = [d.mul_(w) for d, w in zip(trimmed, weight, strict=True)]
    return disjoint_merge(weighted, elect(weighted), weight, normalize).mul_(lambda_)


def elect(weighted: Sequence[Tensor]) -> Tensor:
    """True where the entries add up to 0 or more: the sign that won.

    >>> elect([torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 1.0])])
    tensor([ True, False])
    """
    return torch.stack(list(weighted)).sum(0) >= 0


def disjoint_merge(
    weighted: Sequence[Tensor], positive: Tensor, weight: Sequence[float], normalize: bool
) -> Tensor:
    """The sum of the entries that carry the elected sign, over the sum of their weights.

    >>> one, other = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0])
    >>> disjoint_merge([one, other], elect([one, other]), [1, 1], True)
    tensor([ 2., -2.])
    """
    total, share = torch.zeros_like(weighted[0]), torch.zeros_like(weighted[0])
    for entries, w in zip(weighted, weight, strict=True):
        agrees = torch.where(positive, entries > 0, entries < 0)
        total.add_(entries * agrees)
        share.add_(agrees, alpha=w)
    return total.div_(share.masked_fill_(share == 0, 1)) if normalize else total
