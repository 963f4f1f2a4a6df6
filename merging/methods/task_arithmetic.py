"""Task arithmetic: add the weighted sum of the deltas to the base (arXiv:2212.04089)."""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from merging.methods._method import Number, Switch, method
from merging.methods._weights import times, weighted_sum


@method(
    "Task arithmetic",
    help="Adds what each model learnt to their common base.",
    paper="https://arxiv.org/abs/2212.04089",
    space="deltas",
    base="required",
    models=(1, 3),
)
def task_arithmetic(
    deltas: Sequence[Tensor],
    weight: Annotated[Sequence[float], Number("share of this model's changes", 1, 1, 0, 2)],
    lambda_: Annotated[float, Number("length of the merged step", 1, 1, 0, 3)],
    normalize: Annotated[bool, Switch("divide by the sum of the weights", False)],
) -> Tensor:
    """λ·Σ wᵢ·δᵢ, divided by Σ wᵢ if `normalize` (a sum of 0 counts as 1, as in mergekit).

    >>> import torch
    >>> task_arithmetic([torch.tensor([1.0]), torch.tensor([3.0])], [1, 1], 0.5, False)
    tensor([2.])
    """
    total = weighted_sum(deltas, weight)
    if normalize and abs(sum(weight)) >= 1e-8:
        total.div_(sum(weight))
    return times(total, lambda_)
