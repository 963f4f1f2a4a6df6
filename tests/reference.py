"""Knows the published formulas of the merge methods, plainly, in numpy float64; knows no tiles,
no torch and nothing of the package it is the yardstick for.

Arrays come in as float32 (the values that the checkpoints hold), deltas are taken in float32 as the
engine and mergekit take them, and everything after that is float64. Sources: TIES
(arXiv 2306.01708 and its published code), PEFT's and mergekit's documented behaviour, SLERP
(Shoemake 1985), model soups (arXiv 2203.05482), task arithmetic (arXiv 2212.04089).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COLINEAR = 0.9995
TINY_NORM = 1e-8


def delta(tensor: NDArray[np.float32], base: NDArray[np.float32]) -> Array:
    """The task vector, subtracted in float32."""
    return np.subtract(tensor, base, dtype=np.float32).astype(np.float64)


def kept_count(size: int, density: float) -> int:
    """How many elements a trim keeps: none at 0, all at 1, else the floor but at least one."""
    if density <= 0 or size == 0:
        return 0
    return size if density >= 1 else max(1, int(density * size))


def trim_mask(d: Array, count: int) -> NDArray[np.bool_]:
    """The `count` largest magnitudes; among equals the lowest flat index wins."""
    mask = np.zeros(d.size, dtype=bool)
    mask[np.argsort(-np.abs(d).reshape(-1), kind="stable")[:count]] = True
    return mask.reshape(d.shape)


def trim(d: Array, density: float) -> Array:
    """Exactly k survive, as mergekit counts them."""
    return np.where(trim_mask(d, kept_count(d.size, density)), d, 0.0)


def trim_paper(d: Array, density: float) -> Array:
    """The paper's code: everything that reaches the (int(density * n) + 1)-th largest magnitude."""
    if density <= 0 or d.size == 0:
        return np.zeros_like(d)
    rank = d.size - int(d.size * density)
    if density >= 1 or rank < 1:
        return d
    threshold = np.sort(np.abs(d).reshape(-1))[rank - 1]
    return np.where(np.abs(d) >= threshold, d, 0.0)


def trim_peft(d: Array, density: float) -> Array:
    """PEFT: the floor of density * n survive, and that may be none."""
    count = d.size if density >= 1 else int(max(density, 0.0) * d.size)
    return np.where(trim_mask(d, count), d, 0.0)


def elect(votes: Array) -> Array:
    """+1 or -1 per element from votes stacked along axis 0; a sum of 0 counts as +1."""
    return np.where(votes.sum(axis=0) >= 0, 1.0, -1.0)


def elect_paper(votes: Array) -> Array:
    """The paper's code: a sum of 0 takes the sign of the majority, and -1 where that is 0 too."""
    sign = np.sign(votes.sum(axis=0))
    majority = np.sign(sign.sum()) or -1.0
    return np.where(sign == 0, majority, sign)


def disjoint_merge(stack: Array, weights: Array, sign: Array, *, normalize: bool) -> Array:
    """The sum of what agrees with `sign`, over the weights of what agrees if `normalize`."""
    agrees = np.sign(stack) == sign
    merged = np.where(agrees, stack, 0.0).sum(axis=0)
    if not normalize:
        return merged
    divisor = (agrees * _column(weights, stack)).sum(axis=0)
    return merged / np.where(divisor == 0, 1.0, divisor)


def ties(
    tensors: list[NDArray[np.float32]],
    base: NDArray[np.float32],
    *,
    weight: list[float],
    density: list[float],
    lam: float = 1.0,
    normalize: bool = True,
) -> Array:
    """Trim, weigh, elect, merge what agrees: TIES as mergekit defines it, one tensor at a time."""
    weights = np.array(weight)
    kept = [trim(delta(x, base), d) for x, d in zip(tensors, density, strict=True)]
    weighed = np.stack(kept) * _column(weights, np.stack(kept))
    merged = disjoint_merge(weighed, weights, elect(weighed), normalize=normalize)
    return base.astype(np.float64) + lam * merged


def ties_paper(
    tensors: list[NDArray[np.float32]],
    base: NDArray[np.float32],
    *,
    density: list[float],
    lam: float = 1.0,
) -> Array:
    """The paper's TIES on one tensor: no weights, the mean of what agrees."""
    kept = np.stack([trim_paper(delta(x, base), d) for x, d in zip(tensors, density, strict=True)])
    ones = np.ones(len(tensors))
    merged = disjoint_merge(kept, ones, elect_paper(kept), normalize=True)
    return base.astype(np.float64) + lam * merged


def ties_peft(
    tensors: list[NDArray[np.float32]],
    base: NDArray[np.float32],
    *,
    weight: list[float],
    density: list[float],
    lam: float = 1.0,
) -> Array:
    """PEFT's TIES: the vote is before the weights and the divisor is a count."""
    kept = np.stack([trim_peft(delta(x, base), d) for x, d in zip(tensors, density, strict=True)])
    agrees = np.sign(kept) == elect(kept)
    merged = np.where(agrees, kept * _column(np.array(weight), kept), 0.0).sum(axis=0)
    return base.astype(np.float64) + lam * merged / np.maximum(agrees.sum(axis=0), 1)


def task_arithmetic(
    tensors: list[NDArray[np.float32]],
    base: NDArray[np.float32],
    *,
    weight: list[float],
    lam: float = 1.0,
    normalize: bool = False,
) -> Array:
    """The base plus lambda times the weighted sum of the deltas."""
    total = sum(w * delta(x, base) for x, w in zip(tensors, weight, strict=True))
    divisor = sum(weight) if normalize else 1.0
    return base.astype(np.float64) + lam * total / (divisor if abs(divisor) >= TINY_NORM else 1.0)


def linear(
    tensors: list[NDArray[np.float32]], *, weight: list[float], normalize: bool = True
) -> Array:
    """The weighted sum of the weights, over the sum of the weights if `normalize`."""
    total = sum(w * x.astype(np.float64) for x, w in zip(tensors, weight, strict=True))
    return np.asarray(total / (sum(weight) if normalize else 1.0))


def cosine(a: Array, b: Array) -> float:
    """The cosine between two arrays read as vectors; 0 where either is shorter than 1e-8."""
    lengths = np.linalg.norm(a.reshape(-1)), np.linalg.norm(b.reshape(-1))
    if min(lengths) < TINY_NORM:
        return 0.0
    return float(np.clip(a.reshape(-1) @ b.reshape(-1) / (lengths[0] * lengths[1]), -1.0, 1.0))


def slerp(first: NDArray[np.float32], second: NDArray[np.float32], t: float) -> Array:
    """The arc from `first` (t = 0) to `second`; the chord where there is no angle to speak of.

    One deliberate difference to mergekit: a vector shorter than 1e-8 has no direction, so the
    chord is taken; mergekit takes the arc of 90 degrees there.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    no_direction = min(np.linalg.norm(a.reshape(-1)), np.linalg.norm(b.reshape(-1))) < TINY_NORM
    dot = cosine(a, b)
    if no_direction or abs(dot) > COLINEAR:
        return (1 - t) * a + t * b
    angle = np.arccos(dot)
    return np.asarray(
        np.sin((1 - t) * angle) / np.sin(angle) * a + np.sin(t * angle) / np.sin(angle) * b
    )


def _column(weights: Array, stack: Array) -> Array:
    """One weight a model, shaped to multiply arrays stacked along axis 0."""
    return weights.reshape(-1, *[1] * (stack.ndim - 1))
