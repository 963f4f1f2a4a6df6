"""Which value each parameter of a method has for each tensor; knows recipes and methods only."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merging.errors import MergeError
from merging.methods import Method, Number, Parameter
from merging.recipe import Recipe, Value, known_or_raise

ELSEWHERE = (
    "weight", "density", "t", "lambda", "normalize", "rescale", "int8_mask", "gamma", "epsilon",
    "scale", "filter_wise", "normalize_weights", "eps", "max_iter", "tol", "nuslerp_row_wise",
    "nuslerp_flatten", "select_topk", "r", "alpha",
)  # fmt: skip
"""What mergekit's methods know: not an error where the method at hand has no use for it."""

LAYER = re.compile(r"\.(\d+)\.")
LARGEST = 1e30
"""Parameters are multiplied with float32 weights, and no one means more."""


@dataclass(frozen=True)
class Settings:
    """A recipe's parameters for one method, ready to be asked tensor by tensor.

    `models` are those that are merged, the base left out. `unused` are keys without effect here.
    """

    method: Method
    recipe: Recipe
    models: tuple[str, ...]
    unused: tuple[str, ...]

    def at(self, tensor: str, layers: int) -> dict[str, Any]:
        """Values for one tensor, by YAML name: a number, or a tuple with one a model."""
        match = LAYER.search(tensor)
        place = int(match[1]) / (layers - 1) if match and layers > 1 else 0.0
        values: dict[str, Any] = {}
        for parameter in self.method.parameters:
            each = tuple(
                _value(parameter, written, tensor, place) for written in self._written(parameter)
            )
            values[parameter.name] = each if parameter.per_model else each[0]
        if self.method.refuse and (problem := self.method.refuse(**self.method.arguments(values))):
            raise MergeError(f"{self.method.title}: {problem}.")
        return values

    def _written(self, parameter: Parameter) -> Iterator[tuple[Value | None, ...]]:
        """What the recipe says, the nearest first: under the model, then for all."""
        common = self.recipe.parameters.get(parameter.name)
        if not parameter.per_model:
            yield (common,)
            return
        own = {m.model: m.parameters for m in self.recipe.models}
        for model in self.models:
            yield own[model].get(parameter.name), common


def settings(recipe: Recipe, method: Method, models: Sequence[str]) -> Settings:
    """Check every parameter of the recipe against the method. Raises MergeError naming the first.

    Keys that mergekit knows and this method does not use come back as `unused`.
    """
    known = {p.name: p for p in method.parameters}
    unused = _check_names(recipe.parameters, known)
    for entry in recipe.models:
        unused += _check_names(entry.parameters, known)
        for key in entry.parameters:
            if key in known and not known[key].per_model:
                raise MergeError(
                    f"`{key}` stands under {entry.model}, where it has no effect: "
                    "move it under the recipe's own `parameters:`."
                )
    found = Settings(method, recipe, tuple(models), tuple(dict.fromkeys(unused)))
    found.at("", 1)
    return found


def _check_names(given: Mapping[str, Value], known: Mapping[str, Parameter]) -> list[str]:
    known_or_raise(given, [*known, *ELSEWHERE], "parameters")
    return [key for key in given if key not in known]


def _value(parameter: Parameter, places: Sequence[Value | None], tensor: str, place: float) -> Any:
    """The nearest of `places` that has a value for the tensor, as in mergekit; else the default."""
    for written in places:
        if isinstance(written, list) and written and isinstance(written[0], dict):
            written = _filtered(parameter.name, written, tensor)
        if written is not None:
            return _evaluated(parameter, written, place)
    return parameter.control.default


def _evaluated(parameter: Parameter, written: Value, place: float) -> Any:
    if isinstance(written, list):
        points = [_checked(parameter, point) for point in written]
        if not points:
            raise MergeError(f"`{parameter.name}` is an empty list: give at least one value.")
        return _gradient(points, place)
    return _checked(parameter, written)


def _filtered(name: str, entries: list[Any], tensor: str) -> Value | None:
    """The first entry whose `filter` is part of the tensor's name, or that has none."""
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or "value" not in entry
            or entry.keys() - {"filter", "value"}
        ):
            raise MergeError(f"Each entry of `{name}` is `filter:` (or none) and `value:`.")
    for entry in entries:
        wanted = entry.get("filter")
        if wanted in (None, "*") or str(wanted) in tensor:
            found: Value = entry["value"]
            return found
    return None


def _gradient(points: list[Any], place: float) -> Any:
    """Piecewise linear over the layers; switches step."""
    where = place * (len(points) - 1)
    left = min(int(where), len(points) - 1)
    right = min(left + 1, len(points) - 1)
    if isinstance(points[0], bool):
        return points[round(where)]
    return points[left] + (points[right] - points[left]) * (where - left)


def _checked(parameter: Parameter, value: object) -> float | bool:
    name, control = parameter.name, parameter.control
    if not isinstance(control, Number):
        if isinstance(value, bool):
            return value
        raise MergeError(f"`{name}: {value}` must be true or false.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise MergeError(f"`{name}: {str(value)[:40]}` must be a number.")
    low, high = control.limits
    if not low <= value <= high:
        raise MergeError(f"`{name}: {value}` is out of range: choose {low:g} to {high:g}.")
    return float(value)
