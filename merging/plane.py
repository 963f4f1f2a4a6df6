"""Two vectors, and what a method makes of them, in the plane of the two.

It knows methods and inner products, not where the vectors come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import acos, cos, isfinite, sin, sqrt
from typing import Any

import torch
from torch import Tensor

from merging.methods import Method, Number
from merging.methods._method import PerBlock

POINTS = 32
"""Pieces of the way that is drawn between two models."""
FLAT = 1e-3
"""How far, of its length, a merged vector may stand off the plane of its models to be drawn in."""
NARROW = 1e-4
"""Radians of an angle below which rounding decides in which direction anything lies."""


@dataclass(frozen=True)
class Arrows:
    """Two models and the merged one as vectors (x, y) in the plane of the two, A along x.

    `angle` is that between the models, in radians. `way` is where the merged one goes as `along`,
    the parameter's name, runs through its range.
    """

    angle: float
    tips: tuple[tuple[float, float], ...]
    way: tuple[tuple[float, float], ...]
    along: str


def cosine(gram: Tensor) -> float | None:
    """Between the first two of the vectors; None where one of them is zero."""
    lengths = sqrt(gram[0, 0]) * sqrt(gram[1, 1])
    return max(-1.0, min(1.0, float(gram[0, 1]) / lengths)) if lengths else None


def arrows(
    method: Method, values: Mapping[str, Any], numbers: Mapping[str, Any], gram: Tensor
) -> Arrows | None:
    """Two models and the merged one; None if that is not in their plane, or if there is none.

    `gram` is (3, 3), float64: inner products of the two and of what the method makes of them, with
    its parameters' `values` and the `numbers` that it measured.
    """
    between = cosine(gram)
    if between is None or not NARROW < acos(between) < acos(-1) - NARROW:
        return None
    angle, (a, b) = acos(between), gram.diagonal()[:2].sqrt().tolist()
    models = torch.tensor([[a, 0.0], [b * cos(angle), b * sin(angle)]], dtype=torch.float64)
    merged = torch.linalg.solve(models, gram[:2, 2])
    if float(gram[2, 2] - merged.square().sum()) > FLAT**2 * float(gram[2, 2]):
        return None
    along, way = _way(method, values, numbers, models)
    return Arrows(angle, (*_points(models), *_points(merged[None])), _points(way), along)


def _way(
    method: Method, values: Mapping[str, Any], numbers: Mapping[str, Any], models: Tensor
) -> tuple[str, Tensor]:
    """Where the method takes the two vectors while a parameter with two ends runs from one to the
    other; nowhere if it has none, or looks at single entries.
    """
    blind = not any(isinstance(number, PerBlock) for number in numbers.values())
    for p in method.parameters if blind else ():
        if isinstance(p.control, Number) and not p.per_model and isfinite(sum(p.control.limits)):
            low, high = p.control.limits
            at = [low + (high - low) * n / POINTS for n in range(POINTS + 1)]
            arguments = [method.arguments({**values, p.name: value}) for value in at]
            way = [method.combine(list(models.clone()), **own, **numbers) for own in arguments]
            return p.name, torch.stack(way)
    return "", models[:0]


def _points(vectors: Tensor) -> tuple[tuple[float, float], ...]:
    return tuple((x, y) for x, y in vectors.tolist())
