"""What the pictures of a merge say, without a page: marks, scales and sentences that hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import acos, degrees
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging import Recipe, merge, plan
from merging.exam import Result
from merging.inside import Cell, Inside, inside
from merging.knobs import Knob, parents_of
from merging.merge import Samples
from merging.methods.slerp import COLINEAR
from merging.names import modules, place
from merging.ratings import Curve
from merging.recipe import Input
from merging.samples import summed
from merging.sinks import Live
from merging.ui import charts
from merging.ui.curves import figure
from merging.ui.form import pickers_of
from merging.ui.pictures import Picture, pictures
from tests.conftest import changed, loaded, recipe
from tests.reference import slerp
from tests.test_figures import trimmed
from tests.test_inside import direct, flat, vectors
from tests.ui.models import DEMO

Tensors = Mapping[str, Tensor]
Of = Callable[[list[str]], dict[str, Any]]
BASE, A, B = (DEMO / name for name in ("base", "a", "b"))


def looked(method: str, models: list[Path], **keys: Any) -> Inside:
    samples: Samples = {}
    decided = plan(recipe(method, models, out_dtype="float32", **keys))
    for _ in merge(decided, Live(), samples=samples):
        pass
    found = inside(decided, summed(samples))
    assert found is not None
    return found


def drawn(found: Inside) -> dict[str, Picture]:
    return {p.title: p for p in pictures(found, ["A", "B", "C"][: len(found.models)])}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def cells(picture: Picture, number: int = 0) -> dict[tuple[str, str], float]:
    """A map's values by layer and module."""
    drawn = picture.figure.data[number]
    rows = zip(drawn.y, drawn.z, strict=True)
    every = {(x, y): v for y, row in rows for x, v in zip(drawn.x, row, strict=True)}
    return {at: value for at, value in every.items() if value is not None}


def marks(picture: Picture) -> dict[str, float]:
    """Where each dotted line is, by its text."""
    lines, texts = picture.figure.layout.shapes, picture.figure.layout.annotations
    return {
        text.text: line.y0 if line.y0 == line.y1 else line.x0
        for text, line in zip(texts, lines, strict=True)
    }


def by_cell(tensors: Tensors) -> dict[tuple[str, str], list[str]]:
    """The names of the tensors in each layer and module."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, module in modules(tensors).items():
        found.setdefault((place(name), module), []).append(name)
    return found


def parts(tensors: Tensors, at: list[str]) -> Tensor:
    return flat({name: tensors[name] for name in at})


@pytest.fixture
def alike(pico: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Models whose changes are alike, so that no figure of them is what chance would give."""
    a, c = loaded(pico["a"]), loaded(pico["c"])
    between = {name: (a[name] + c[name]) / 2 for name in a}
    return pico | {"c": changed(pico["c"], tmp_path / "c", tensors=between)}


def added(models: dict[str, Path]) -> tuple[dict[str, Picture], Tensors, Of]:
    """Pictures of two changes that are added up, the base, and direct figures of any tensors."""
    keys = {"base_model": models["base"], "parameters": {"lambda": 0.7}}
    shown = drawn(looked("task_arithmetic", [models["a"], models["c"]], **keys))
    base, (a, c) = vectors(models)
    merged = {name: 0.7 * (a[name] + c[name]) for name in base}

    def of(at: list[str]) -> dict[str, Any]:
        return direct(parts(base, at), [parts(a, at), parts(c, at)], parts(merged, at))

    return shown, base, of


def test_maps_of_changes(alike: dict[str, Path]) -> None:
    """Their cells and facts, against direct computations over all elements."""
    shown, base, of = added(alike)
    sizes, cosines, *_ = shown.values()
    each, whole = {at: of(names) for at, names in by_cell(base).items()}, of([*base])
    for number in range(2):
        expected = {at: 100 * found["size"][number] for at, found in each.items()}
        assert cells(sizes, number) == pytest.approx(expected, rel=1e-4)
    assert numbers(sizes.facts) == pytest.approx([100 * x for x in whole["size"]], abs=0.5)
    expected = {at: found["cosine"][0] for at, found in each.items()}
    assert cells(cosines) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert numbers(cosines.facts) == pytest.approx(whole["cosine"], abs=5e-3)


def test_lines_and_bars_of_changes(alike: dict[str, Path]) -> None:
    """The same; chance is a dashed line beside what was found."""
    shown, base, of = added(alike)
    *_, differ, long, kept = shown.values()
    columns, whole = ["in", "0", "1", "out"], of([*base])
    layers = [of([n for n in base if place(n) == column]) for column in columns]
    own, chance = differ.figure.data
    assert [*own.x] == [*long.figure.data[0].x] == columns
    assert [*own.y] == pytest.approx([100 * x["conflict"] for x in layers])
    assert [*chance.y] == pytest.approx([100 * x["chance"] for x in layers])
    assert (own.line.dash, chance.line.dash) == ("solid", "dash")
    shares = [100 * whole["conflict"], 100 * whole["chance"]]
    assert numbers(differ.facts) == pytest.approx(shares, abs=0.5)
    ratios = [2 * x["merged"] / sum(x["norm"]) for x in (*layers, whole)]
    assert [*long.figure.data[0].y] == pytest.approx(ratios[:-1], rel=1e-4)
    assert numbers(long.facts) == pytest.approx(ratios[-1:], abs=5e-3)
    assert [*kept.figure.data[0].x] == pytest.approx(whole["retained"], rel=1e-4)
    assert numbers(kept.facts)[:2] == pytest.approx(whole["retained"], abs=5e-3)
    assert marks(kept) == {"all": 1}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_marks_of_average_and_sum(count: int, pico: dict[str, Path]) -> None:
    """Where changes of one length at right angles would end; all marks are within the scale."""
    models = [pico[name] for name in ("a", "c", "b")[:count]]
    keys = {"parameters": {"density": 0.5}, "base_model": pico["base"]}
    picture = drawn(looked("ties", models, **keys))["Length of the merged change"]
    right = torch.eye(count)  # each as long as the models' mean, which is 1
    sum_of, average = float(right.sum(0).norm()), float(right.mean(0).norm())
    several = {f"average 1/√{count}": average, f"sum √{count}": sum_of}
    assert marks(picture) == pytest.approx(several if count > 1 else {"the model's own": 1})
    low, high = picture.figure.layout.yaxis.range
    assert low == 0 and high > max(sum_of, *picture.figure.data[0].y)


def test_what_the_trim_keeps_is_drawn(pico: dict[str, Path]) -> None:
    """A line a model, in its colour: the energy of the largest entries of each tensor."""
    keys = {"parameters": {"density": 0.3}, "base_model": pico["base"]}
    picture = drawn(looked("ties", [pico["a"], pico["c"]], **keys))["What the trim keeps"]
    base, deltas = vectors(pico)
    kept = [{name: trimmed(delta[name], 0.3) for name in base} for delta in deltas]
    for line, delta, own in zip(picture.figure.data, deltas, kept, strict=True):
        layers = [[n for n in base if place(n) == column] for column in line.x]
        shares = [parts(own, at).square().sum() / parts(delta, at).square().sum() for at in layers]
        assert [*line.y] == pytest.approx([100 * float(share) for share in shares], rel=1e-4)
    shares = [
        float((flat(k) @ flat(k)) / (flat(d) @ flat(d))) for k, d in zip(kept, deltas, strict=True)
    ]
    assert numbers(picture.facts) == pytest.approx([100 * share for share in shares], abs=0.5)
    assert [line.line.color for line in picture.figure.data] == [*charts.COLOURS[:2]]


def test_arcs_are_drawn_as_they_are(pico: dict[str, Path], tmp_path: Path) -> None:
    """Of SLERP: angles, distances, lengths, and where it was LERP."""
    same = "model.layers.0.mlp.up_proj.weight"
    like = changed(pico["c"], tmp_path / "c", tensors={same: loaded(pico["a"])[same]})
    shown = drawn(looked("slerp", [pico["a"], like], base_model=pico["a"]))
    a, c = ({k: v.float() for k, v in loaded(folder).items()} for folder in (pico["a"], like))
    merged = {k: torch.from_numpy(slerp(a[k].numpy(), c[k].numpy(), 0.5)) for k in a}

    def of(at: list[str]) -> tuple[float, float, float]:
        x, y, m = (parts(tensors, at) for tensors in (a, c, merged))
        cosine = float(x @ y / x.norm() / y.norm())
        return (
            degrees(acos(min(1.0, cosine))), 100 * float((x - y).norm() / x.norm()),
            float(2 * m.norm() / (x.norm() + y.norm())),
        )  # fmt: skip

    angle, apart, ratio = of([*a])
    each = {at: of(names) for at, names in by_cell(a).items()}
    away, angles, long = shown.values()
    assert cells(away) == pytest.approx({at: x for at, (_, x, _) in each.items()}, rel=1e-4)
    assert numbers(away.facts) == pytest.approx([apart], abs=0.5)
    assert cells(angles) == pytest.approx({at: x for at, (x, *_) in each.items()}, abs=1e-3)
    [(degree, spherical, places)] = [numbers(angles.facts)]
    assert degree == pytest.approx(angle, abs=0.5)
    assert (spherical, places) == (len(each) - 1, len(each))
    (drawn_map,) = angles.figure.data
    dotted = [
        (x, y)
        for y, row in zip(drawn_map.y, drawn_map.text, strict=True)
        for x, text in zip(drawn_map.x, row, strict=True)
        if text
    ]
    assert dotted == [("0", "up")]
    assert marks(long) == {"the models' own": 1}
    assert numbers(long.facts) == pytest.approx([ratio], abs=5e-3)
    layers = [of([n for n in a if place(n) == column])[2] for column in long.figure.data[0].x]
    assert [*long.figure.data[0].y] == pytest.approx(layers, rel=1e-5)


def test_each_sentence_says_what_to_look_for(pico: dict[str, Path]) -> None:
    """In words of the picture beside it; where it names a limit, that is the method's."""
    keys = {"base_model": pico["base"], "parameters": {"density": 0.5}}
    models = [pico["a"], pico["c"]]
    said = {
        title: picture.look_for
        for found in (looked("ties", models, **keys), looked("slerp", models, base_model=models[0]))
        for title, picture in drawn(found).items()
    }
    edge = degrees(acos(COLINEAR))
    for title, words in {
        "Where the models changed": ("An even, faint map is usual",),
        "How alike the changes are": ("A cosine of 0 to 0.2", "below 0 they pull apart"),
        "How much they disagree": ("dashed one, which is what chance would give",),
        "What the trim keeps": ("the higher a line", "lost by dropping the others"),
        "Length of the merged change": ("The marks are", "above 2 the step is too long"),
        "What is kept of each model": ("before its tick", "at 1 all of its change is there"),
        "How far apart the models are": ("strangers are 100 % and more",),
        "The angle between the models": (f"below {edge:.1f}°", f"above {180 - edge:.0f}°", "LERP"),
        "Length of the merged weights": ("as an arc keeps them", "averaging has made them shorter"),
    }.items():
        assert all(each in said[title] for each in words), title
    assert len(said) == 9 and all(re.fullmatch(r"[A-Z].*[^.]\.", each) for each in said.values())


def test_errors_are_drawn_twice_as_long() -> None:
    """Two standard errors, as the text above the pictures says."""
    found = looked("ties", [A, B], base_model=BASE, parameters={"density": 0.5})
    shown = drawn(found)
    own = shown["How much they disagree"].figure.data[0]
    errors = [layer["error"]["conflict"] for layer in found.layers.values()]
    assert min(errors) > 0
    assert [*own.error_y.array] == pytest.approx([200 * error for error in errors])
    bars = shown["What is kept of each model"].figure.data[0]
    errors = [*found.whole["error"]["merged"]["retained"].values()]
    assert min(errors) > 0
    assert [*bars.error_x.array] == pytest.approx([2 * error for error in errors])


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
