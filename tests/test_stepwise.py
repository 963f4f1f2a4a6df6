"""One tensor step by step: its stages against plain formulas in float64, and against what the merge
of the same recipe writes for these entries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from merging import merge, plan, stepwise
from merging.errors import MergeError
from merging.methods import Method, Number, methods, variants
from merging.opening import APP
from merging.pairing import Step
from merging.plan import Plan
from merging.recipe import Recipe
from merging.sinks import Folder
from merging.sources import Remote
from merging.stepwise import SIDE, Shown, View, look, offered, usual
from tests import reference
from tests.conftest import WEIGHTS, loaded, recipe
from tests.reference import Array

Pico = dict[str, Path]
DEMO = {name: Path("assets/demo") / name for name in ("base", "a", "b")}
KINDS = [
    method
    for name in methods()
    for method in variants(name).values()
    if method.models[1] > 1  # the others merge nothing
]
few = settings(deadline=None, derandomize=True, max_examples=12, database=None)
fresh = itertools.count()


def decided(method: Method, models: Pico, own: list[dict[str, Any]], **common: Any) -> Plan:
    """A plan over `a` and others, as many as there are values of their own."""
    names = [name for name in models if name != "base"]
    entries = [(models[n], values) for n, values in zip(names, own, strict=False)]
    keys: dict[str, Any] = {"parameters": common} if common else {}
    if method.base == "required":
        keys["base_model"] = models["base"]
    if method.variant != "mergekit":
        keys["variant"] = method.variant
    return plan(recipe(method.name, entries, **keys))


def values(method: Method, draw: Any, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Random parameters of a method, eighths so that float32 sums of a few are exact."""
    own: list[dict[str, Any]] = [{} for _ in range(count)]
    common: dict[str, Any] = {}
    for p in method.parameters:
        control = p.control
        one = (
            st.integers(int(8 * control.low) + (p.name == "weight"), int(8 * control.high)).map(
                lambda n: n / 8
            )
            if isinstance(control, Number)
            else st.booleans()
        )
        for place in own if p.per_model else [common]:
            place[p.name] = draw(one)
    return own, common


def cut(view: View, tensor: torch.Tensor) -> torch.Tensor:
    """The entries that a view is of, from a whole tensor."""
    rows, columns = stepwise.sides(view.step)
    flat = torch.cat([tensor.reshape(-1), tensor.new_zeros(rows * columns - tensor.numel())])
    return flat.view(rows, columns)[view.row : view.row + SIDE, view.column : view.column + SIDE]


def step_of(found: Plan, name: str) -> Step:
    return next(step for step in found.steps if step.name == name)


@pytest.mark.parametrize("kind", KINDS, ids=lambda m: f"{m.name}-{m.variant}")
@pytest.mark.parametrize("which", ["pico", "demo"])
def test_what_is_seen_is_what_the_merge_writes(
    kind: Method, which: str, pico: Pico, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Random parameters, tensors and places, and the last rows of embeddings, of which one model
    has two that the others lack."""
    models = DEMO if which == "demo" else {n: pico[n] for n in ("a", "b", "c", "base")}

    @settings(few, max_examples=4)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        low, high = kind.models
        count = data.draw(st.integers(low, 2 if which == "demo" else high))
        own, common = values(kind, data.draw, count)
        found = decided(kind, models, own, **common)
        out = tmp_path_factory.mktemp("stepwise") / str(next(fresh))
        for _ in merge(found, Folder(out)):
            pass
        written = loaded(out)
        names = ["model.embed_tokens.weight", "model.norm.weight"]
        names += data.draw(st.lists(st.sampled_from([s.name for s in found.steps]), max_size=4))
        for name in names:
            step = step_of(found, name)
            rows, columns = stepwise.sides(step)
            place = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
            for row, column in (place, (rows, 0)):
                view = look(found, step, row, column)
                assert torch.equal(view.merged, cut(view, written[name]))
                last = view.stages[-1].patch[0]
                whole = last if view.base is None else last + view.base
                assert torch.equal(whole.to(step.dtype), view.merged)

    check()


# The steps of TIES, in float64


def cuts(view: View, tensors: list[Array] | Array) -> np.ndarray:
    return np.stack([cut(view, torch.from_numpy(np.asarray(t))).numpy() for t in tensors])


def by_formula(method: Method, deltas: list[Array], own: dict[str, Any]) -> dict[str, Array]:
    """The stages of one tensor, stacked by model."""
    weights = np.array(own["weight"]).reshape(-1, 1)
    trim = reference.trim_peft if method.variant == "peft" else reference.trim
    trimmed = np.stack([trim(d, k) for d, k in zip(deltas, own["density"], strict=True)])
    votes = trimmed * weights if method.variant == "mergekit" else trimmed
    sign = reference.elect(votes)
    kept = np.where(np.sign(votes) == sign, votes, 0.0)
    found = {"Trimmed": trimmed, "Elected sign": sign[None], "Kept": kept}
    if method.variant == "mergekit":
        share = ((kept != 0) * weights).sum(0) if own["normalize"] else 1.0
        return found | {"Weighted": votes, "Merged": kept.sum(0, keepdims=True) / np.where(
            share == 0, 1.0, share) * own["lambda"]}  # fmt: skip
    agree = np.maximum((kept != 0).sum(0), 1)
    return found | {"Merged": (kept * weights).sum(0, keepdims=True) / agree * own["lambda"]}


@pytest.mark.parametrize("variant", ["mergekit", "peft"])
def test_the_steps_of_ties(variant: str, pico: Pico) -> None:
    """Each stage, its counts over the whole tensor, and where the models disagree."""
    kind = variants("ties")[variant]
    models = {n: pico[n] for n in ("a", "c", "base")}
    held = {n: load_file(models[n] / WEIGHTS) for n in models}

    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        own, common = values(kind, data.draw, 2)
        common |= {"rescale": False} if variant == "mergekit" else {}
        found = decided(kind, models, own, **common)
        step = data.draw(st.sampled_from(found.steps))
        a, c, base = (held[n][step.name].float().numpy().reshape(-1) for n in models)
        deltas = [reference.delta(a, base), reference.delta(c, base)]
        given = common | {key: [each[key] for each in own] for key in own[0]}
        wanted = by_formula(kind, deltas, given)
        view = look(found, step, data.draw(st.integers(0, 60)), data.draw(st.integers(0, 30)))
        assert np.array_equal(view.stages[0].patch, cuts(view, deltas))
        shown = {stage.name: stage for stage in view.stages[1:]}
        assert ("Weighted" in shown) == ("Weighted" in wanted and set(given["weight"]) != {1})
        for name, stage in shown.items():
            assert np.allclose(stage.patch, cuts(view, wanted[name]), rtol=1e-6, atol=1e-9), name
            if name != "Merged":
                assert stage.counts == tuple((wanted[name] != 0).sum(1)), name
        signs = np.sign(wanted["Trimmed"])
        assert shown["Trimmed"].differ == int((signs.prod(0) < 0).sum())
        assert shown["Kept"].differ == 0
        assert list(view.lengths[:2]) == pytest.approx([np.linalg.norm(d) for d in deltas])

    check()


def test_the_paper_trims_the_whole_model(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the whole model's threshold; where that is too large, with the tensor's, and says so."""
    models = {n: pico[n] for n in ("a", "c", "base")}
    found = decided(variants("ties")["paper"], models, [{"density": 0.3}] * 2)
    held = {n: load_file(models[n] / WEIGHTS) for n in models}
    step = step_of(found, "model.norm.weight")

    def deltas(model: str, names: list[str]) -> Array:
        parts = [held[model][n].float() - held["base"][n].float() for n in names]
        return torch.cat([p.reshape(-1) for p in parts]).double().numpy()

    for names, alone in ((sorted(held["a"]), False), ([step.name], True)):
        if alone:
            monkeypatch.setattr(stepwise, "LIMIT", 5000)
        view = look(found, step)
        assert view.alone is alone
        for model, count in zip(("a", "c"), view.stages[1].counts, strict=True):
            kept = reference.trim_paper(deltas(model, names), 0.3)
            threshold = np.abs(kept[kept != 0]).min()
            assert count == int((np.abs(deltas(model, [step.name])) >= threshold).sum())


# Two models as arrows


def slerp(models: Mapping[str, Path | str], t: float) -> tuple[View, Array, Array]:
    found = plan(recipe("slerp", [models["a"], models["c"]], parameters={"t": t}))
    step = usual(offered(found))
    held = [load_file(Path(models[n]) / WEIGHTS)[step.name] for n in "ac"]
    return look(found, step), *(x.double().numpy().reshape(-1) for x in held)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_the_arrows_of_slerp(t: float, pico: Pico) -> None:
    """Angle and lengths are the tensors' own; the merged arrow is on the way, at t."""
    view, a, c = slerp(pico, t)
    assert view.outcome == "spherical" and view.arrows is not None
    assert view.cosine == pytest.approx(reference.cosine(a, c), abs=1e-12)
    merged = reference.slerp(a, c, t)  # type: ignore[arg-type]  # any floats will do
    wanted = [float(np.linalg.norm(x)) for x in (a, c, merged)]
    assert list(view.lengths) == pytest.approx(wanted, rel=1e-6)
    tips, way = view.arrows.tips, view.arrows.way
    assert [math.hypot(*tip) for tip in tips] == pytest.approx(wanted, rel=1e-6)
    angle = math.acos(reference.cosine(a, c))
    assert math.atan2(tips[1][1], tips[1][0]) == pytest.approx(angle, rel=1e-9)
    own = math.acos(reference.cosine(a, merged)) if t else 0.0
    assert math.atan2(tips[2][1], tips[2][0]) == pytest.approx(own, rel=1e-4, abs=1e-6)
    assert view.arrows.along == "t" and way[0] == tips[0] and way[-1] == tips[1]


def test_models_on_one_line_have_no_arrows(pico: Pico) -> None:
    """A model beside itself: LERP, and no angle to draw."""
    view, *_ = slerp(pico | {"c": f"{pico['a']}/../a"}, 0.5)
    assert view.outcome == "LERP" and view.cosine == pytest.approx(1) and view.arrows is None


@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
def test_sums_lie_in_their_models_plane(name: str, pico: Pico) -> None:
    """Arrows are drawn for whatever adds two models up, without a way, and not for TIES."""
    models = {n: pico[n] for n in ("a", "c", "base")}
    view = look(found := decided(methods()[name], models, [{}, {}]), usual(offered(found)))
    assert view.arrows is not None and view.arrows.way == ()
    assert math.hypot(*view.arrows.tips[2]) == pytest.approx(view.lengths[2], rel=1e-5)
    found = decided(methods()["ties"], models, [{"density": 0.5}] * 2)
    assert look(found, usual(offered(found))).arrows is None


# What there is to look at


def test_what_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of a small model, one of the middle first; none that is too large."""
    found = plan(Recipe.from_yaml((APP / "assets/recipes/01-demo-ties.yaml").read_text()))
    assert offered(found) == found.steps
    assert usual(offered(found)).name == "model.layers.2.mlp.down_proj.weight"
    large = found.steps[0]
    monkeypatch.setattr(stepwise, "LIMIT", large.size - 1)
    assert large not in offered(found) and len(offered(found)) == len(found.steps) - 2
    with pytest.raises(MergeError, match="choose one of at most"):
        look(found, large)


def test_nothing_to_see(pico: Pico) -> None:
    """Slices of one model each, and parents that are elsewhere, have a sentence of their own."""
    stacked = {"sources": [{"model": str(pico["a"]), "layer_range": [0, 1]}]}
    text = yaml.safe_dump({"merge_method": "passthrough", "slices": [stacked, stacked]})
    found = plan(Recipe.from_yaml(text))
    with pytest.raises(MergeError, match="nothing that happens step by step"):
        look(found, usual(offered(found)))
    found = decided(methods()["slerp"], pico, [{}, {}])
    a = found.sources[0]
    away = Remote(
        "org/a@1", None, a.folder, a.config, a.tensors, "1", 10  # type: ignore[arg-type]  # unused
    )  # fmt: skip
    with pytest.raises(MergeError, match="press Merge"):
        look(replace(found, sources=(away, *found.sources[1:])), found.steps[0])


def test_small_and_odd_shapes(pico: Pico) -> None:
    """Whatever a tensor's shape, the patch lies inside."""
    found = decided(methods()["ties"], pico, [{"density": 0.5}] * 2)
    for step in found.steps:
        view = look(found, step, 10**6, 10**6)
        assert view.merged.numel() <= SIDE * SIDE
        stages: tuple[Shown, ...] = view.stages
        assert all(s.patch.shape[1:] == view.merged.shape for s in stages)
