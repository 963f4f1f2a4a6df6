"""Passthrough: one model's tensors as they are, to stack slices of several into a deeper model."""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from merging.methods._method import Number, method


@method(
    "Passthrough",
    help="Takes each layer from one model, as the recipe's slices say.",
    paper="https://arxiv.org/abs/2312.15166",
    space="weights",
    base="unused",
    models=(1, 1),
)
def passthrough(
    tensors: Sequence[Tensor],
    scale: Annotated[Sequence[float], Number("factor on this model's weights", 1, 1, 0, 2)],
) -> Tensor:
    """The model's own values, times `scale`.

    >>> import torch
    >>> passthrough([torch.tensor([1.0, 2.0])], [0.5])
    tensor([0.5000, 1.0000])
    """
    return tensors[0] if scale[0] == 1 else tensors[0] * scale[0]
