"""Which numbers of a recipe can be turned, and the recipe with one of them at another value.

It knows recipes and methods' declarations, no models.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

from merging.errors import MergeError
from merging.methods import Number
from merging.recipe import Recipe
from merging.roles import method_of

FEWEST, MOST = 3, 21
"""Values of a sweep."""


@dataclass(frozen=True)
class Knob:
    """A number of a recipe; where each model has its own, that of one `model`, or of all alike."""

    name: str
    model: str | None = None


def parents_of(recipe: Recipe) -> list[str]:
    """The models that are merged; a base that is listed as well is none of them."""
    base = recipe.base_model if method_of(recipe).base == "required" else None
    return [name for name in recipe.listed() if name != base]


def knobs(recipe: Recipe) -> dict[Knob, Number]:
    """All that can be turned, those of all models before those of each: `lambda` before all."""
    declared = [p for p in method_of(recipe).parameters if isinstance(p.control, Number)]
    merged = parents_of(recipe)
    models = [m.model for m in recipe.models if m.model in merged]
    declared.sort(key=lambda p: p.per_model)
    found = {Knob(p.name): p.control for p in declared}
    for parameter in (p for p in declared if p.per_model):
        found |= {Knob(parameter.name, model): parameter.control for model in models}
    return {knob: control for knob, control in found.items() if isinstance(control, Number)}


def turned(recipe: Recipe, knob: Knob, value: float) -> Recipe:
    """The recipe with a knob at a value.

    Raises MergeError for a knob that the method has not, or whose values are set in YAML as
    gradients, filters or slices.
    """
    known = knobs(recipe)
    if Knob(knob.name) not in known:
        names = ", ".join(dict.fromkeys(k.name for k in known)) or "none"
        raise MergeError(
            f"`{knob.name}` is no number of {method_of(recipe).title}: choose one of {names}."
        )
    if knob not in known:
        raise MergeError(f"`{knob.name}` has no value of its own for {knob.model}: leave it out.")
    per_model = any(p.name == knob.name and p.per_model for p in method_of(recipe).parameters)
    written = [recipe.parameters, *(m.parameters for m in recipe.models)]
    if recipe.slices or any(isinstance(own.get(knob.name), list) for own in written):
        raise MergeError(
            f"`{knob.name}` is set in YAML, by layers or filters: write one number in its place "
            "to sweep it."
        )
    if not per_model:
        return replace(recipe, parameters={**recipe.parameters, knob.name: value})
    return replace(recipe, models=tuple(
        replace(m, parameters={**m.parameters, knob.name: value})
        if knob.model in (None, m.model) else m for m in recipe.models
    ))  # fmt: skip


def along(
    recipe: Recipe, knob: Knob, low: float, high: float, count: int
) -> Mapping[float, Recipe]:
    """The recipe at `count` values from `low` to `high`, both included, equally far apart.

    Raises MergeError as `turned` does, and for a range or a count that makes no sense.
    """
    if not (isfinite(low) and isfinite(high) and low < high):
        raise MergeError(f"{low:g} to {high:g} is no range: let the second number be larger.")
    if not FEWEST <= count <= MOST or count != int(count):
        raise MergeError(f"{count:g} values cannot be swept: choose {FEWEST} to {MOST}.")
    turned(recipe, knob, low)  # refuses the knob, before its limits are asked for
    floor, roof = knobs(recipe)[knob].limits
    if low < floor or high > roof:
        raise MergeError(f"`{knob.name}` must stay within {floor:g} to {roof:g}: narrow the range.")
    width = (high - low) / (int(count) - 1)
    found = [float(f"{low + n * width:.6g}") for n in range(int(count))]
    return {value: turned(recipe, knob, value) for value in found}
