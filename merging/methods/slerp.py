"""SLERP: walk from one model to another along the arc between them, a tensor at a time.

The formula is Shoemake's (SIGGRAPH 1985), the rules for near-parallel tensors mergekit's.
"""

import math
from collections.abc import Generator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from merging.methods._method import BlockFunction, Number, method

COLINEAR = 0.9995
"""Beyond this cosine the arc is as good as its chord, and sin θ too small to divide by."""
EMPTY = 1e-8
"""A vector shorter than this has no direction."""


PIECE = 512
"""Products that are added up in float32 before float64 takes over: each sum is of so few that its
rounding, which is as often up as down, is lost among the pieces.
"""


def dots(tensors: Sequence[Tensor]) -> Tensor:
    """a·b, a·a and b·b of one block, in float64."""
    a, b = tensors
    return torch.stack([_dot(a, b), _dot(a, a), _dot(b, b)])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    whole = len(a) // PIECE * PIECE
    pieces: Tensor = torch.linalg.vecdot(a[:whole].view(-1, PIECE), b[:whole].view(-1, PIECE))
    rest = a[whole:].double() @ b[whole:].double()
    return pieces.sum(dtype=torch.float64) + rest


def measure() -> Generator[BlockFunction, Tensor, dict[str, Any]]:
    """The cosine between the two tensors, or None where one of them is all but zero."""
    ab, aa, bb = (yield dots).tolist()
    norms = math.sqrt(aa) * math.sqrt(bb)
    if min(aa, bb) < EMPTY**2:
        return {"cosine": None}
    return {"cosine": max(-1.0, min(1.0, ab / norms))}


def outcome(cosine: float | None) -> str:
    """Which of the two formulas a tensor gets."""
    return "LERP" if cosine is None or abs(cosine) > COLINEAR else "spherical"


@method(
    "SLERP",
    help="Walks from A to B along an arc, so that lengths are kept.",
    paper="https://dl.acm.org/doi/10.1145/325165.325242",
    space="weights",
    base="first",
    models=(2, 2),
    measure=measure,
    outcome=outcome,
)
def slerp(
    tensors: Sequence[Tensor],
    t: Annotated[float, Number("0 = A, 1 = B", 0.5, 0.5, 0, 1, (0, 1))],
    *,
    cosine: float | None,
) -> Tensor:
    """sin((1-t)θ)/sin θ·a + sin(tθ)/sin θ·b, with cos θ = `cosine`; (1-t)·a + t·b if colinear.

    >>> slerp([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], 0.5, cosine=0.0)
    tensor([0.7071, 0.7071])
    """
    a, b = tensors
    if t in (0, 1):
        return (b if t else a).clone()
    if cosine is None or outcome(cosine) == "LERP":
        return a.mul_(1 - t).add_(b, alpha=t)
    theta = math.acos(cosine)
    near, far = (math.sin(share * theta) / math.sin(theta) for share in (1 - t, t))
    return a.mul_(near).add_(b, alpha=far)
