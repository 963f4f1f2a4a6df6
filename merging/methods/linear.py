"""Linear: the weighted average of the models themselves, as in model soups (arXiv:2203.05482)."""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from merging.methods._method import Number, Switch, method
from merging.methods._weights import weighted_sum


def weights_cancel(weight: Sequence[float], normalize: bool) -> str | None:
    """Say so where the average would divide by nothing."""
    if normalize and abs(sum(weight)) < 1e-8:
        return "the weights add up to 0, which cannot be normalised: change one, or `normalize`"
    return None


@method(
    "Linear",
    help="Averages the models entry by entry.",
    paper="https://arxiv.org/abs/2203.05482",
    space="weights",
    base="unused",
    refuse=weights_cancel,
)
def linear(
    tensors: Sequence[Tensor],
    weight: Annotated[Sequence[float], Number("share of this model", 1, 1, 0, 2)],
    normalize: Annotated[bool, Switch("divide by the sum of the weights", True)],
) -> Tensor:
    """Σ wᵢ·xᵢ, divided by Σ wᵢ if `normalize`.

    >>> import torch
    >>> linear([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 5.0])], [1, 3], True)
    tensor([2.5000, 4.5000])
    """
    total = weighted_sum(tensors, weight)
    return total.div_(sum(weight)) if normalize else total
