"""What the pictures of a merge say, without a page: marks, scales and sentences that hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merging import Recipe, merge, plan
from merging.exam import Result
from merging.inside import Cell, Inside, inside
from merging.knobs import Knob, parents_of
from merging.merge import Numbers, Samples, outcomes
from merging.ratings import Curve
from merging.recipe import Input
from merging.samples import summed
from merging.sinks import Live
from merging.ui.curves import figure
from merging.ui.form import pickers_of
from merging.ui.pictures import Picture, pictures
from tests.conftest import recipe
from tests.ui.models import DEMO

BASE, A, B = (DEMO / name for name in ("base", "a", "b"))


def looked(method: str, models: list[Path], **keys: Any) -> Inside:
    samples: Samples = {}
    numbers: Numbers = {}
    decided = plan(recipe(method, models, out_dtype="float32", **keys))
    for _ in merge(decided, Live(), numbers, samples=samples):
        pass
    found = inside(decided, summed(samples), outcomes(decided, numbers))
    assert found is not None
    return found


def drawn(found: Inside) -> dict[str, Picture]:
    return {p.title: p for p in pictures(found, ["A", "B", "C"][: len(found.models)])}


def test_an_average_ends_at_its_ticks() -> None:
    """The ticks are what an average of these very models keeps, alike or not, long or short."""
    keys = {"base_model": BASE, "parameters": {"weight": 0.5, "lambda": 1}}
    picture = drawn(looked("task_arithmetic", [A, B], **keys))["What is kept of each model"]
    bars, ticks = picture.figure.data
    assert [*ticks.x] == pytest.approx([*bars.x], rel=1e-3)
    assert 0.5 < ticks.x[0] < 0.7 < ticks.x[1] < 0.95
    assert "a plain average" in picture.look_for and "in an average: A 0.6" in picture.facts


def test_one_model_has_no_average() -> None:
    """Nor other models beside which its change is long."""
    keys = {"base_model": BASE, "parameters": {"density": 0.5, "lambda": 1}}
    found = drawn(looked("ties", [A], **keys))
    assert len(found["What is kept of each model"].figure.data) == 1
    told = found["Length of the merged change"].look_for
    assert "the model's own change" in told and "right angles" not in told


@pytest.mark.parametrize(
    ("title", "method", "keys", "reach"),
    [
        ("Where the models changed", "ties", {"base_model": BASE}, 30),
        ("How far apart the models are", "linear", {}, 100),
    ],
)
def test_fine_tunes_are_faint(method: str, title: str, keys: dict[str, Any], reach: float) -> None:
    """A map's scale does not end at its own largest value: what is little looks like little."""
    found = looked(method, [A, B], **keys)
    maps = drawn(found)[title].figure.data
    assert {each.zmax for each in maps} == {reach}
    far = replace(found, cells={place: Cell((2.0, 2.0), (0.0,)) for place in found.cells})
    assert {each.zmax for each in drawn(far)[title].figure.data} == {200}


def test_cells_with_both_kinds_of_tensors() -> None:
    """A cell is spherical if all its tensors are."""
    found = looked("slerp", [A, B], base_model=A)
    places = [*found.cells]
    kinds = [("spherical", "LERP"), ("LERP",), *[("spherical",)] * (len(places) - 2)]
    cells = {
        place: replace(found.cells[place], outcomes=kind)
        for place, kind in zip(places, kinds, strict=True)
    }
    picture = drawn(replace(found, cells=cells))["The angle between the models"]
    assert f"spherical in {len(places) - 2} of {len(places)} places" in picture.facts
    assert sum(text == "•" for row in picture.figure.data[0].text for text in row) == 2


@pytest.mark.parametrize(
    ("method", "base", "a", "b"),
    [("linear", "x", "x", "y"), ("ties", "x", "y", None), ("slerp", None, "x", "y")],
)
def test_a_base_among_the_models(method: str, base: str | None, a: str, b: str | None) -> None:
    """Only where the others' changes are taken to it is it no model of the merge; a sweep's plot
    has each in its own colour."""
    models = (Input("y"), Input("x")) if method == "slerp" else (Input("x"), Input("y"))
    written = Recipe(method, models, base_model="x")
    shown = pickers_of(written)
    assert shown == {"base": base, "a": a, "b": b, "c": None}
    slots = {name: slot for slot, name in shown.items() if name}
    called = {name: name.upper() for name in parents_of(written)}
    curve = Curve(Knob("weight"), called, {name: Result((True,)) for name in called})
    assert figure(curve, slots, (0, 1)) is not None
