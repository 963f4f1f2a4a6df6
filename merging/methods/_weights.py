"""Weighted tensors and their sums, in place; knows no merge method."""

from collections.abc import Sequence

from torch import Tensor


def times(tensor: Tensor, factor: float) -> Tensor:
    """The tensor, multiplied in place; a factor of 1, the most frequent, costs nothing."""
    return tensor if factor == 1 else tensor.mul_(factor)


def weighted_sum(tensors: Sequence[Tensor], weight: Sequence[float]) -> Tensor:
    """Σ wᵢ·xᵢ, in the memory of the first.

    >>> import torch
    >>> weighted_sum([torch.tensor([1.0]), torch.tensor([3.0])], [1, 2])
    tensor([7.])
    """
    total = times(tensors[0], weight[0])
    for tensor, share in zip(tensors[1:], weight[1:], strict=True):
        total.add_(tensor, alpha=share)
    return total
