"""Which models of each slice are merged, in which order, and which is the base.

It knows a recipe and its method; it opens no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from merging.errors import MergeError
from merging.methods import Method, methods, variants
from merging.recipe import Input, Recipe, Slice, known_or_raise


def method_of(recipe: Recipe) -> Method:
    """The method that a recipe names. Raises MergeError if there is none, or no such variant."""
    known_or_raise([recipe.merge_method], methods(), "merge methods")
    found = variants(recipe.merge_method)
    if recipe.variant not in found:
        raise MergeError(
            f"{methods()[recipe.merge_method].title} has no `variant: {recipe.variant}`: "
            f"choose {' or '.join(found)}, or remove the line."
        )
    return found[recipe.variant]


@dataclass(frozen=True)
class Part:
    """A slice of the recipe with its roles: `merged`, and `base` if the method wants one."""

    piece: Slice
    merged: tuple[Input, ...]
    base: Input | None

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (*self.merged, self.base) if self.base else self.merged


def roles(recipe: Recipe, method: Method) -> tuple[Part, ...]:
    """Each slice with its roles: what is merged, in order, and the base the deltas are taken to."""
    return tuple(_part(recipe, method, piece) for piece in recipe.stacked())


def _part(recipe: Recipe, method: Method, piece: Slice) -> Part:
    listed = [m.model for m in piece.sources]
    twice = [name for name in listed if listed.count(name) > 1]
    if twice:
        raise MergeError(f"{twice[0]} is listed twice: choose another model for one of the two.")
    named = piece.base_model or recipe.base_model
    base = named if method.base == "required" else None
    if method.base == "required" and not base:
        raise MergeError(
            f"{method.title} merges changes to a common base: add `base_model: …`, "
            "or choose SLERP or Linear."
        )
    merged = [m for m in piece.sources if m.model != base]
    if method.base == "first":
        merged.sort(key=lambda m: m.model != named)
    _check_count(method, len(merged), bool(base), bool(recipe.slices))
    if base is None:
        return Part(piece, tuple(merged), None)
    own = next((m for m in piece.sources if m.model == base), None)
    return Part(piece, tuple(merged), own or Input(base, layer_range=merged[0].layer_range))


def _check_count(method: Method, count: int, based: bool, sliced: bool) -> None:
    low, high = method.models
    if low <= count <= high:
        return
    wanted = f"{low} model{'s' if low > 1 else ''}" if low == high else f"{low} to {high} models"
    raise MergeError(
        f"{method.title} takes {wanted}{' beside the base' if based else ''}, and "
        f"{'a slice of ' if sliced else ''}the recipe has {count}: "
        + ("add one." if count < low else "remove one, or choose another method.")
    )


def in_order(parts: Sequence[Part]) -> tuple[str, ...]:
    """The models that are merged, in order, then the bases."""
    merged = [m.model for part in parts for m in part.merged]
    bases = [part.base.model for part in parts if part.base]
    return tuple(dict.fromkeys([*(name for name in merged if name not in bases), *bases]))
