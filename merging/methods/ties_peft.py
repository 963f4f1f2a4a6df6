"""TIES as in PEFT (`peft.utils.merge_utils.ties`): a tensor at a time, weights after the vote.

Exactly int(density·n) entries stay, and that may be none; division is by how many agree, whatever
their weights. PEFT has no λ: it is 1 unless the recipe says otherwise.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from merging.methods._method import Asking, Number, Stage, listed, method
from merging.methods._trim import exactly, keep, trim_each
from merging.methods.ties import ELECTED, KEPT, TRIMMED, agreeing, elect


def floor(density: float, size: int) -> int:
    """How many of `size` entries a density keeps.

    >>> floor(0.5, 5), floor(0.01, 5), floor(1, 5)
    (2, 0, 5)
    """
    return size if density >= 1 else int(density * size)


def measure(
    density: Sequence[float],
) -> Asking:
    """The trim's `threshold` and `spare`, as `_trim` has them."""
    return (yield from exactly(density, floor))


@method(
    "TIES",
    help="Keeps each model's largest changes, votes on their sign, averages those that agree.",
    paper="https://arxiv.org/abs/2306.01708",
    variant="peft",
    space="deltas",
    base="required",
    models=(1, 3),
    measure=measure,
    keep=keep,
)
def ties(
    deltas: Sequence[Tensor],
    weight: Annotated[Sequence[float], Number("factor on this model's share", 1, 1, 0, 2)],
    density: Annotated[
        Sequence[float], Number("part of the changes that is kept", 1, 0.5, 0, 1, (0, 1))
    ],
    lambda_: Annotated[float, Number("length of the merged step", 1, 1, 0, 3)],
    *,
    threshold: Sequence[int],
    spare: Sequence[int | None] | None,
) -> Iterator[Stage]:
    """λ·(the weighted deltas that agree, over their number)."""
    trimmed = trim_each(deltas, threshold, spare)
    yield Stage("Trimmed", TRIMMED.format(listed(density)), trimmed)
    sign = elect(trimmed)
    yield Stage("Elected sign", ELECTED, sign)
    agreed = [agreeing(entries, sign) for entries in trimmed]
    yield Stage("Kept", KEPT, agreed, sign)
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for own, w in zip(agreed, weight, strict=True):
        total.add_(own, alpha=w)
        count.add_(own.sign_())
    merged = total.div_(count.clamp_(min=1)).mul_(sign).mul_(lambda_)
    told = f"The mean of what is left, times weight {listed(weight)}, times lambda {lambda_:g}."
    yield Stage("Merged", told, merged)
