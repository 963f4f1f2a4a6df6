"""TIES: trim each delta, elect one sign per entry, merge the deltas that agree (arXiv:2306.01708).

The rules are mergekit's: trim per tensor, weights before the vote, division by the kept weights.
`ties_paper` and `ties_peft` are the other two in use.
"""

from collections.abc import Generator, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from merging.methods import _trim
from merging.methods._method import BlockFunction, Number, Ordered, Switch, method
from merging.methods._trim import trim_each

EMPTY = 1e-7
"""A delta of a smaller sum is not stretched."""


def measure(
    density: Sequence[float], rescale: bool
) -> Generator[BlockFunction | Ordered, Any, dict[str, Any]]:
    """The trim's `threshold` and `spare`, and each model's `stretch`, 1 unless `rescale`."""
    found = yield from _trim.measure(density)
    stretch = [1.0] * len(density)
    if rescale:
        whole, above = (yield partial(sums, threshold=found["threshold"])).tolist()
        equal = _trim.at_threshold(found)
        for model, (before, after) in enumerate(zip(whole, above, strict=True)):
            left = after + equal[model]
            stretch[model] = before / left if min(before, left) >= EMPTY else 1.0
    return found | {"stretch": stretch}


def sums(deltas: Sequence[Tensor], threshold: Sequence[int]) -> Tensor:
    """(2, models) sums of |δ|, of all and of those above the threshold, in float64."""
    whole = [d.abs().sum(dtype=torch.float64) for d in deltas]
    over = [_trim.magnitude(d) > t for d, t in zip(deltas, threshold, strict=True)]
    above = [(d * o).abs().sum(dtype=torch.float64) for d, o in zip(deltas, over, strict=True)]
    return torch.stack([torch.stack(whole), torch.stack(above)])


@method(
    "TIES",
    help="Keeps each model's largest changes, votes on their sign, merges those that agree.",
    paper="https://arxiv.org/abs/2306.01708",
    space="deltas",
    base="required",
    models=(1, 3),
    measure=measure,
)
def ties(  # noqa: PLR0913  # five parameters as mergekit has them, three numbers
    deltas: Sequence[Tensor],
    weight: Annotated[Sequence[float], Number("share of this model in vote and sum", 1, 1, 0, 2)],
    density: Annotated[  # noqa: ARG001  # `measure` reads it, and hands over a threshold
        Sequence[float], Number("part of the changes that is kept", 1, 0.5, 0, 1, (0, 1))
    ],
    lambda_: Annotated[float, Number("length of the merged step", 1, 1, 0, 3)],
    normalize: Annotated[bool, Switch("divide by the weights of those that agree", True)],
    rescale: Annotated[  # noqa: ARG001  # `measure` reads it, and hands over a stretch
        bool, Switch("stretch what the trim keeps to the sum it had", False)
    ],
    *,
    threshold: Sequence[int],
    spare: Sequence[int] | None,
    stretch: Sequence[float],
) -> Tensor:
    """λ·(disjoint merge of the trimmed, stretched, weighted deltas)."""
    trimmed = trim_each(deltas, threshold, spare)
    weighted = [d.mul_(s * w) for d, s, w in zip(trimmed, stretch, weight, strict=True)]
    return disjoint_merge(weighted, elect(weighted), weight, normalize).mul_(lambda_)


def elect(weighted: Sequence[Tensor], draw: bool = True) -> Tensor:
    """True where the entries add up to more than 0, and `draw` where to exactly 0.

    >>> elect([torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 1.0])])
    tensor([ True, False])
    """
    total = torch.stack(list(weighted)).sum(0)
    return total >= 0 if draw else total > 0


def agrees(entries: Tensor, positive: Tensor) -> Tensor:
    """True where an entry has the elected sign; one of 0 has none.

    >>> agrees(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([True, True, True]))
    tensor([ True, False, False])
    """
    return torch.where(positive, entries > 0, entries < 0)


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
        own = agrees(entries, positive)
        total.add_(entries * own)
        share.add_(own, alpha=w)
    return total.div_(share.masked_fill_(share == 0, 1)) if normalize else total
