"""What a merge did inside the model: figures of the whole, of each layer, of each module of each.

It knows the names of tensors and the sums over them; not who takes those, nor how it is drawn.
"""

import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from merging import names
from merging.figures import angle, estimated, grouped
from merging.samples import Sums

if TYPE_CHECKING:
    from merging.pairing import Step
    from merging.plan import Plan

Place = TypeVar("Place", bound=Hashable)
Figures = Mapping[str, Any]
"""Figures by name, as `figures.estimated` has them."""


@dataclass(frozen=True)
class Cell:
    """One module of one layer. Of each model `size`, or of each pair of models if they are weights;
    of each pair `cosine` and `angle`, in degrees; what the method did to its tensors."""

    size: tuple[float | None, ...]
    cosine: tuple[float | None, ...]
    outcomes: tuple[str, ...] = ()

    @property
    def angle(self) -> tuple[float | None, ...]:
        return tuple(map(angle, self.cosine))


@dataclass(frozen=True)
class Inside:
    """Figures of a merge of `models`, of their deltas if it is `based`, else of their weights.

    `layers` has one of each layer, from `in`, what comes before them, to `out`; `cells` are by
    layer and module. `trims`: whether the method trims. A few tens of kB for 32 layers.
    """

    models: tuple[str, ...]
    based: bool
    trims: bool
    whole: Figures
    layers: Mapping[str, Figures]
    cells: Mapping[tuple[str, str], Cell]


def inside(plan: "Plan", sums: Mapping[str, Sums]) -> Inside | None:
    """The figures of a merge by place; None for what `whole` has none of."""
    all_of_it = whole(plan, sums)
    if all_of_it is None:
        return None
    models = tuple(all_of_it["norm"])
    modules = names.modules(sums)
    layers = _by([names.place(name) for name in modules], modules, sums, models)
    places = [(names.place(name), module) for name, module in modules.items()]
    done: dict[tuple[str, str], dict[str, None]] = {place: {} for place in places}
    for place, name in zip(places, modules, strict=True):
        if outcome := sums[name].outcome:
            done[place][outcome] = None
    cells = {
        place: Cell(_sizes(each), _values(each["cosine"]), tuple(done[place]))
        for place, each in _by(places, modules, sums, models, errors=False).items()
    }
    layers = {place: layers[place] for place in sorted(layers, key=_depth)}
    return Inside(models, plan.based, plan.method.keep is not None, all_of_it, layers, cells)


def whole(plan: "Plan", sums: Mapping[str, Sums]) -> Figures | None:
    """The whole model's figures by the models' names; None where slices have different models, or
    where not all tensors were looked at, as in a run that another one had begun."""
    models = merged_models(plan)
    if models is None or any(step.name not in sums for step in _weights(plan)):
        return None
    return estimated([*sums.values()], models)


def merged_models(plan: "Plan") -> list[str] | None:
    """The models of which every tensor is merged, in order; None where slices differ in them."""
    sources = {step.sources for step in _weights(plan)}
    if len(sources) != 1:
        return None
    (places,) = sources
    return [plan.sources[n].name for n in places][: len(places) - plan.based]


def _weights(plan: "Plan") -> "list[Step]":
    """What is merged, as against what is taken over as it is."""
    return [step for step in plan.steps if step.size and not step.copied]


def _by(
    places: Sequence[Place], order: Iterable[str], sums: Mapping[str, Sums], models: Sequence[str],
    *, errors: bool = True,
) -> dict[Place, Figures]:  # fmt: skip
    """The figures of the tensors at each place; `places` are those of the tensors in `order`."""
    numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
    groups = [numbers[place] for place in places]
    found = grouped([sums[name] for name in order], groups, models, errors=errors)
    return dict(zip(numbers, found, strict=True))


def _depth(place: str) -> int:
    """The order of layers, what is before and after them included."""
    return int(place) if place.isdigit() else {"in": -1}.get(place, sys.maxsize)


def _sizes(figures: Figures) -> tuple[float | None, ...]:
    return tuple(figures["size"].values()) if "size" in figures else _values(figures["apart"])


def _values(pairs: Iterable[Mapping[str, Any]]) -> tuple[float | None, ...]:
    return tuple(pair["value"] for pair in pairs)
