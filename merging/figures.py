"""Numbers about deltas: how long each is, and how they lie to each other. It draws nothing.

Everything follows from the deltas' inner products, which add up over blocks and tensors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def products(deltas: Sequence[Tensor]) -> Tensor:
    """(models, models) inner products of one block of deltas, float64.

    >>> products([torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])])
    tensor([[25., 24.],
            [24., 25.]], dtype=torch.float64)
    """
    rows = torch.stack([delta.reshape(-1).double() for delta in deltas])
    return rows @ rows.T


def described(gram: Tensor, models: Sequence[str]) -> dict[str, Any]:
    """Norms and cosines out of inner products, as `inspect --json` prints them.

    A cosine with a delta of zero is None: there is no angle.
    """
    norms = gram.diagonal().sqrt().tolist()
    pairs = [(i, j) for i in range(len(models)) for j in range(i + 1, len(models))]
    cosine = [
        {
            "models": [models[i], models[j]],
            "value": gram[i, j].item() / (norms[i] * norms[j]) if norms[i] * norms[j] else None,
        }
        for i, j in pairs
    ]
    return {"norm": dict(zip(models, norms, strict=True)), "cosine": cosine}
