"""TIES as in the code of its authors (arXiv:2306.01708): each model is trimmed as one long vector.

Everything that reaches the threshold stays, models have no weights, and where the trimmed deltas
add up to 0 the sign is the one that won most entries of the whole model.
"""

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from merging.methods._method import BlockFunction, Number, Stage, listed, method
from merging.methods._trim import keep, thresholds, trim_each
from merging.methods.ties import ELECTED, KEPT, TRIMMED, agreeing, disjoint_merge, elect


def reached(density: float, size: int) -> int:
    """Which of the largest of `size` magnitudes is the threshold; its equals stay as well.

    >>> reached(0.2, 1000), reached(0, 5), reached(1, 5)
    (201, 1, 5)
    """
    return min(size, int(size * density) + 1)


def lead(deltas: Sequence[Tensor], threshold: Sequence[int]) -> Tensor:
    """By how many the entries whose trimmed deltas add up to more than 0 outnumber the opposite."""
    trimmed = trim_each(deltas, threshold, None)
    return torch.stack(trimmed).sum(0).sign().sum(dtype=torch.int64)


def measure(density: Sequence[float]) -> Generator[BlockFunction, Tensor, dict[str, Any]]:
    """Each model's `threshold`, as int32, and the `majority` of the positive entries."""
    threshold = [0] * len(density)
    if min(density) < 1:
        threshold, _ = yield from thresholds(density, reached)
    majority = yield partial(lead, threshold=threshold)
    return {"threshold": threshold, "majority": int(majority)}


@method(
    "TIES",
    help="Keeps each whole model's largest changes, votes on their sign, averages what agrees.",
    paper="https://arxiv.org/abs/2306.01708",
    variant="paper",
    space="deltas",
    base="required",
    models=(1, 3),
    measure=measure,
    keep=keep,
    scope="model",
)
def ties(
    deltas: Sequence[Tensor],
    density: Annotated[
        Sequence[float], Number("part of the changes that is kept", 1, 0.2, 0, 1, (0, 1))
    ],
    lambda_: Annotated[float, Number("length of the merged step", 1, 1, 0, 3)],
    *,
    threshold: Sequence[int],
    majority: int,
) -> Iterator[Stage]:
    """λ·(mean of the trimmed deltas that agree); a draw with no majority goes to the negatives."""
    trimmed = trim_each(deltas, threshold, None)
    yield Stage("Trimmed", TRIMMED.format(listed(density)), trimmed)
    sign = elect(trimmed, majority > 0)
    yield Stage("Elected sign", ELECTED, sign)
    agreed = [agreeing(entries, sign) for entries in trimmed]
    yield Stage("Kept", KEPT, agreed, sign)
    merged = disjoint_merge(agreed, sign, [1] * len(agreed), True).mul_(lambda_)
    yield Stage("Merged", f"The mean of what is left, times lambda {lambda_:g}.", merged)
