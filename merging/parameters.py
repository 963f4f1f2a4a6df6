"""Which value each parameter of a method has for each tensor; knows recipes and methods only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merging.errors import MergeError
from merging.methods import Method, Number, Parameter
from merging.recipe import Input, Recipe, Slice, Value, known_or_raise

ELSEWHERE = (
    "weight", "density", "t", "lambda", "normalize", "rescale", "int8_mask", "gamma", "epsilon",
    "scale", "filter_wise", "normalize_weights", "eps", "max_iter", "tol", "nuslerp_row_wise",
    "nuslerp_flatten", "select_topk", "r", "alpha",
)  # fmt: skip
"""What mergekit's methods know: not an error where the method at hand has no use for it."""

LARGEST = 1e30
"""Bound of a parameter's size: it is multiplied with float32 weights, and no one means more."""


@dataclass(frozen=True)
class Settings:
    """A recipe's parameters for one method, ready to be asked tensor by tensor.

    `unused` are keys without effect here.
    """

    method: Method
    recipe: Recipe
    unused: tuple[str, ...]

    def at(
        self,
        tensor: str,
        piece: Slice,
        models: Sequence[Input] = (),
        reads: Sequence[str] = (),
        place: float = 0.0,
    ) -> dict[str, Any]:
        """Values for one tensor, by YAML name: a number, or a tuple with one a model.

        `models` are those of the slice that are merged, `reads` the tensor's name in each, `place`
        is 0 at the slice's first layer and 1 at its last.
        """
        common = (piece.parameters, self.recipe.parameters)
        values: dict[str, Any] = {}
        for parameter in self.method.parameters:
            if parameter.per_model:
                values[parameter.name] = tuple(
                    _value(parameter, (model.parameters, *common), read, place)
                    for model, read in zip(models, reads, strict=True)
                )
            else:
                values[parameter.name] = _value(parameter, common, tensor, place)
        if self.method.refuse and (problem := self.method.refuse(**self.method.arguments(values))):
            raise MergeError(f"{self.method.title}: {problem}.")
        return values


def settings(recipe: Recipe, method: Method) -> Settings:
    """Check every parameter of the recipe against the method. Raises MergeError naming the first.

    Keys that mergekit knows and this method does not use come back as `unused`.
    """
    known = {p.name: p for p in method.parameters}
    unused = _check_names(recipe.parameters, known)
    for piece in recipe.stacked():
        unused += _check_names(piece.parameters, known)
        for entry in piece.sources:
            unused += _check_names(entry.parameters, known)
            for key in entry.parameters:
                if key in known and not known[key].per_model:
                    raise MergeError(
                        f"`{key}` stands under {entry.model}, where it has no effect: "
                        "move it under the recipe's own `parameters:`."
                    )
    return Settings(method, recipe, tuple(dict.fromkeys(unused)))


def _check_names(given: Mapping[str, Value], known: Mapping[str, Parameter]) -> list[str]:
    known_or_raise(given, [*known, *ELSEWHERE], "parameters")
    return [key for key in given if key not in known]


def _value(
    parameter: Parameter, places: Sequence[Mapping[str, Value]], tensor: str, where: float
) -> Any:
    """The nearest of `places` that has a value for the tensor, as in mergekit; else the default."""
    for given in places:
        written = given.get(parameter.name)
        if isinstance(written, list) and written and isinstance(written[0], dict):
            written = _filtered(parameter.name, written, tensor)
        if written is not None:
            return _evaluated(parameter, written, where)
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
        return points[left]
    return points[left] + (points[right] - points[left]) * (where - left)


def _checked(parameter: Parameter, value: object) -> float | bool:
    name, control = parameter.name, parameter.control
    if not isinstance(control, Number):
        if isinstance(value, bool | int) and value in (0, 1):
            return bool(value)
        raise MergeError(f"`{name}: {value}` must be true or false.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise MergeError(f"`{name}: {str(value)[:40]}` must be a number.")
    low, high = control.limits
    if not low <= value <= high:
        raise MergeError(f"`{name}: {value}` is out of range: choose {low:g} to {high:g}.")
    return float(value)
