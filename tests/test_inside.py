"""What a merge did inside the model, exact and sampled: figures against direct computations."""

from __future__ import annotations

import math
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from merging import MergeError, Recipe, merge, plan
from merging.blocks import returned
from merging.figures import distances, estimated, grouped
from merging.inside import Inside, inside, whole
from merging.inspecting import inspected
from merging.merge import Samples
from merging.names import modules, place
from merging.samples import LENGTH, ROWS, Sample, Sums, summed, sums
from merging.sinks import Live
from tests.conftest import loaded, recipe
from tests.test_figures import trimmed

Pico = dict[str, Path]
pytestmark = pytest.mark.usefixtures("one_thread")


def exact(method: str, pico: Pico, **keys: Any) -> dict[str, Any]:
    return dict(returned(inspected(plan(recipe(method, [pico["a"], pico["c"]], **keys)))))


def figures(method: str, pico: Pico, **keys: Any) -> Inside:
    samples: Samples = {}
    decided = plan(recipe(method, [pico["a"], pico["c"]], out_dtype="float32", **keys))
    for _ in merge(decided, Live(dtype=torch.float32), samples=samples):
        pass
    found = inside(decided, summed(samples))
    assert found is not None
    return found


def vectors(pico: Pico) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The base and the models' deltas, as the merge subtracts them."""
    base, *models = (loaded(pico[name]) for name in ("base", "a", "c"))
    deltas = [{k: m[k].float() - base[k].float() for k in base} for m in models]
    return {k: v.float() for k, v in base.items()}, deltas


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double()


def direct(base: Tensor, deltas: list[Tensor], merged: Tensor) -> dict[str, Any]:
    """The figures by their definitions, in float64."""
    moved = torch.stack([d != 0 for d in deltas]).all(0)
    differ = (deltas[0].sign() != deltas[1].sign())[moved].double().mean()
    plus = [float((d[moved] > 0).double().mean()) for d in deltas]
    return {
        "norm": [float(d.norm()) for d in deltas],
        "size": [float(d.norm() / base.norm()) for d in deltas],
        "cosine": [float(deltas[0] @ deltas[1] / deltas[0].norm() / deltas[1].norm())],
        "merged": float(merged.norm()),
        "toward": [float(merged @ d / merged.norm() / d.norm()) for d in deltas],
        "retained": [float(merged @ d / (d @ d)) for d in deltas],
        "conflict": float(differ),
        "chance": plus[0] * (1 - plus[1]) + plus[1] * (1 - plus[0]),
    }


def told(found: dict[str, Any]) -> dict[str, Any]:
    """The same figures as they are printed."""
    return {
        "norm": [*found["norm"].values()],
        "size": [*found["size"].values()],
        "cosine": [pair["value"] for pair in found["cosine"]],
        "merged": found["merged"]["norm"],
        "toward": [*found["merged"]["cosine"].values()],
        "retained": [*found["merged"]["retained"].values()],
        "conflict": found["conflict"],
        "chance": found["chance"],
    }


def assert_same(one: dict[str, Any], other: dict[str, Any], rel: float) -> None:
    for name, value in other.items():
        assert one[name] == pytest.approx(value, rel=rel, abs=rel), name


def test_exact_figures_of_task_arithmetic(pico: Pico) -> None:
    """Of the whole and of every tensor, equal to float64 over all elements."""
    values = {"lambda": 0.7, "weight": 1}
    found = exact("task_arithmetic", pico, base_model=pico["base"], parameters=values)
    base, deltas = vectors(pico)
    merged = {k: (deltas[0][k] + deltas[1][k]) * 0.7 for k in base}
    assert_same(
        told(found["whole"]), direct(flat(base), [flat(d) for d in deltas], flat(merged)), 1e-9
    )
    assert found["tensors"].keys() == base.keys()
    for name, own in found["tensors"].items():
        parts = [x[name].flatten().double() for x in (base, *deltas, merged)]
        assert_same(told(own), direct(parts[0], parts[1:3], parts[3]), 1e-9)
    assert [*found["whole"]["kept"].values()] == [1, 1]
    assert found["whole"].keys().isdisjoint({"error", "apart", "angle"})


@pytest.mark.parametrize("block", [None, 100])
def test_exact_figures_of_ties(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, block: int | None
) -> None:
    """What the trim keeps, and what becomes of it; also where each block keeps its own equals."""
    if block:
        monkeypatch.setattr("merging.blocks.BLOCK", block)
    found = exact("ties", pico, base_model=pico["base"], parameters={"density": 0.3})
    base, deltas = vectors(pico)
    kept = [{k: trimmed(d[k], 0.3) for k in base} for d in deltas]
    merged = {}
    for name in base:
        one, other = (k[name] for k in kept)
        sign = torch.where(one + other < 0, -1.0, 1.0)
        agree = [torch.where(x.sign() == sign, x, 0) for x in (one, other)]
        count = sum((x != 0).float() for x in agree)
        merged[name] = (agree[0] + agree[1]) / count.clamp(min=1)
    for own, at in [(found["whole"], sorted(base)), *((found["tensors"][n], [n]) for n in base)]:
        parts = [flat({n: x[n] for n in at}) for x in (base, *deltas, merged, *kept)]
        assert_same(told(own), direct(parts[0], parts[1:3], parts[3]), 1e-6)
        shares = [float((k @ k) / (d @ d)) for k, d in zip(parts[4:], parts[1:3], strict=True)]
        assert [*own["kept"].values()] == pytest.approx(shares, rel=1e-9)


def test_exact_figures_of_slerp(pico: Pico) -> None:
    """Of weights: their angle, and which formula each tensor got by it."""
    found = exact("slerp", pico, base_model=pico["a"], parameters={"t": 0.5})
    a, c = ({k: v.double() for k, v in loaded(pico[n]).items()} for n in ("a", "c"))
    for own, x, y in [
        (found["whole"], flat(a), flat(c)),
        *((found["tensors"][n], a[n].flatten(), c[n].flatten()) for n in a),
    ]:
        cosine = float(x @ y / x.norm() / y.norm())
        assert own["of"] == "weights"
        assert own["angle"][0]["value"] == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-7)
        apart = float((x - y).norm() / x.norm())
        assert own["apart"][0]["value"] == pytest.approx(apart, rel=1e-9)
        if "formula" in own:
            assert own["formula"] == ("LERP" if cosine > 0.9995 else "spherical")
    assert all("formula" in own for own in found["tensors"].values())
    assert found["whole"]["formulas"] == {"spherical": len(a)} and found["whole"]["of"] == "weights"


def test_exact_figures_of_an_average(pico: Pico) -> None:
    """Of weights where there is no base: of the whole and of every tensor, for each pair."""
    entries = [pico["a"], (pico["c"], {"weight": 2}), pico["base"]]
    found = returned(inspected(plan(recipe("linear", entries))))
    models = [{k: v.double() for k, v in loaded(pico[n]).items()} for n in ("a", "c", "base")]
    a, c, base = models
    merged = {k: (a[k] + 2 * c[k] + base[k]) / 4 for k in a}
    assert found["tensors"].keys() == a.keys()
    for own, at in [(found["whole"], a), *((o, [n]) for n, o in found["tensors"].items())]:
        *each, became = (flat({n: x[n] for n in at}) for x in (*models, merged))
        norms = [float(x.norm()) for x in each]
        assert [*own["norm"].values()] == pytest.approx(norms, rel=1e-9) and own["of"] == "weights"
        assert own["merged"]["norm"] == pytest.approx(float(became.norm()), rel=1e-6)
        pairs = [*combinations(each, 2)]
        cosines = [float(x @ y / x.norm() / y.norm()) for x, y in pairs]
        assert told_of(own["cosine"]) == pytest.approx(cosines, rel=1e-9)
        degrees = [math.degrees(math.acos(cosine)) for cosine in cosines]
        assert told_of(own["angle"]) == pytest.approx(degrees, rel=1e-6)
        away = [float((x - y).norm() / x.norm()) for x, y in pairs]
        assert told_of(own["apart"]) == pytest.approx(away, rel=1e-6)
        assert own.keys().isdisjoint({"formula", "formulas", "size", "error"})


def told_of(pairs: list[dict[str, Any]]) -> list[float]:
    return [pair["value"] for pair in pairs]


def stacked(*models: Path) -> str:
    """A layer of each model, one on the other."""
    cuts = [[{"model": str(model), "layer_range": [n, n + 1]}] for n, model in enumerate(models)]
    slices = [{"sources": cut} for cut in cuts]
    return yaml.safe_dump({"merge_method": "passthrough", "slices": slices})


def test_exact_figures_of_slices(pico: Pico) -> None:
    """Where all are of the same models; where they are not there is no whole to tell of."""
    found = returned(inspected(plan(Recipe.from_yaml(stacked(pico["a"], pico["a"])))))
    length = float(flat({k: v.double() for k, v in loaded(pico["a"]).items()}).norm())
    assert found["whole"]["norm"] == {str(pico["a"]): pytest.approx(length, rel=1e-9)}
    assert found["whole"]["cosine"] == found["whole"]["angle"] == []
    with pytest.raises(MergeError, match="slices have different models"):
        returned(inspected(plan(Recipe.from_yaml(stacked(pico["a"], pico["c"])))))


def test_figures_by_place(pico: Pico) -> None:
    """Layers and modules are those of the names, and each has the figures of its own tensors."""
    found = figures("ties", pico, base_model=pico["base"], parameters={"density": 0.5})
    base, deltas = vectors(pico)
    assert [*found.layers] == ["in", "0", "1", "out"]
    columns = {"0": "layers.0.", "1": "layers.1.", "in": "embed_tokens"}
    for column, part in columns.items():
        own = [n for n in base if part in n]
        sizes = [float(flat({n: d[n] for n in own}).norm() / flat({n: base[n] for n in own}).norm())
                 for d in deltas]  # fmt: skip
        assert [*found.layers[column]["size"].values()] == pytest.approx(sizes, rel=1e-6)
    assert {m for _, m in found.cells} == {
        "q", "k", "v", "o", "gate", "up", "down", "norm", "tokens",
    }  # fmt: skip
    x, y = (d["model.layers.1.mlp.up_proj.weight"].flatten().double() for d in deltas)
    cell = found.cells["1", "up"]
    assert cell.cosine == pytest.approx((float(x @ y / x.norm() / y.norm()),), rel=1e-6)
    norms = [n for n in base if "layers.1." in n and "norm" in n]
    assert len(norms) == 2
    own = [float(flat({n: d[n] for n in norms}).norm()) for d in deltas]
    weights = float(flat({n: base[n] for n in norms}).norm())
    assert found.cells["1", "norm"].size == pytest.approx([n / weights for n in own], rel=1e-6)
    assert found.trims and found.based and found.models == (str(pico["a"]), str(pico["c"]))


def test_angles_and_formulas_by_place(pico: Pico) -> None:
    found = figures("slerp", pico, base_model=pico["a"])
    a, c = (loaded(pico[n])["model.layers.0.self_attn.q_proj.weight"].double().flatten()
            for n in ("a", "c"))  # fmt: skip
    cosine = float(a @ c / a.norm() / c.norm())
    cell = found.cells["0", "q"]
    assert cell.angle == pytest.approx((math.degrees(math.acos(cosine)),), rel=1e-5)
    assert cell.outcomes == ("spherical",) and not found.based and not found.trims
    assert len(pickle.dumps(found)) < 40_000


@pytest.mark.parametrize("models", [2, 3])
def test_chance_is_what_shuffled_signs_give(models: int) -> None:
    """The baseline against a simulation: entries shuffled within each model, many times."""
    random = torch.Generator().manual_seed(models)
    size = 2000
    leaning = [torch.randn(size, generator=random) + lean for lean in (0.8, -0.3, 0.1)[:models]]
    named = [str(n) for n in range(models)]

    def of(inputs: list[Tensor]) -> dict[str, Any]:
        rows = sums(torch.stack([*inputs, sum(inputs, torch.zeros(size))])[None], models)
        return estimated([Sums(rows, size, models, False)], named)

    chance = of(leaning)["chance"]
    shuffled = [
        of([x[torch.randperm(size, generator=random)] for x in leaning]) for _ in range(200)
    ]
    conflicts = torch.tensor([each["conflict"] for each in shuffled], dtype=torch.float64)
    assert float(conflicts.mean()) == pytest.approx(
        chance, abs=4 * float(conflicts.std()) / 200**0.5
    )
    assert shuffled[0]["chance"] == pytest.approx(chance, rel=1e-12)
    plus = [float((x > 0).double().mean()) for x in leaning]
    none = math.prod(plus) + math.prod(1 - p for p in plus)
    assert chance == pytest.approx(1 - none, rel=1e-12)


def sampled(count: int) -> list[Sums]:
    """Samples of long tensors, and two of short ones that are taken whole."""
    random = torch.Generator().manual_seed(7)
    shapes = [(ROWS, 6, LENGTH, 1 << 20)] * (count - 2) + [(1, 6, 50, 50)] * 2
    samples = {
        str(n): Sample(torch.randn(*shape, generator=random) * (n + 1), size, 2, True)
        for n, (*shape, size) in enumerate(shapes)
    }
    return [*summed(samples).values()]


def test_a_group_is_as_if_it_were_alone() -> None:
    """Figures and errors of several groups at once are those of each by itself."""
    found, groups = sampled(6), [0, 1, 0, 2, 1, 2]
    together = grouped(found, groups, ["a", "b"])
    for number, each in enumerate(together):
        own = [f for f, g in zip(found, groups, strict=True) if g == number]
        alone = estimated(own, ["a", "b"])
        assert_same(told(each), told(alone), 1e-12)
        assert_same(told(each["error"]), told(alone["error"]), 1e-9)
        assert each["error"]["norm"]["a"] > 0


def test_errors_of_what_is_retained() -> None:
    """Most samples are within their own error of all elements."""
    random = torch.Generator().manual_seed(3)
    size = 1 << 18
    base, *deltas = (torch.randn(size, generator=random) for _ in range(3))
    scale = torch.linspace(0.5, 2, size)
    deltas = [d * scale for d in deltas]
    merged = torch.where(deltas[0].sign() == deltas[1].sign(), deltas[0] + deltas[1], deltas[0])
    true = float(merged.double() @ deltas[1].double() / (deltas[1].double() @ deltas[1].double()))
    off = []
    for _ in range(40):
        starts = torch.randint(0, size - LENGTH, (ROWS,), generator=random).tolist()
        rows = [torch.stack([v[s : s + LENGTH] for v in (*deltas, merged, base)]) for s in starts]
        found = estimated([*summed({"": Sample(torch.stack(rows), size, 2, True)}).values()],
                          ["a", "b"])  # fmt: skip
        value, error = (x["merged"]["retained"]["b"] for x in (found, found["error"]))
        off.append(abs(value - true) / error)
    assert 0.5 < sum(x < 1 for x in off) / len(off) < 0.9 and max(off) < 4.5


@pytest.mark.parametrize("based", [True, False])
def test_how_far_models_lie_apart(based: bool) -> None:
    random = torch.Generator().manual_seed(1)
    inputs = [torch.randn(300, generator=random).double() * (n + 1) for n in range(3)]
    rows = sums(torch.stack([*inputs, inputs[0], inputs[1]][: 4 + based])[None], 3)
    between = [float((x - y).square().sum()) for x, y in combinations(inputs, 2)]
    squares = [float(x.square().sum()) for x in inputs]
    own = squares if based else []
    found = distances({"x": Sums(rows, 300, 3, based)})
    length = squares[1] if based else sum(squares) / 3  # `inputs[1]` stands for the base
    assert found["x"] == pytest.approx((max(*between, *own), length), rel=1e-12)


def test_a_part_of_the_tensors_says_nothing_of_the_whole(pico: Pico) -> None:
    """As after a kill: what another run merged was not looked at."""
    samples: Samples = {}
    decided = plan(recipe("ties", [pico["a"], pico["c"]], base_model=pico["base"]))
    for _ in merge(decided, Live(), samples=samples):
        pass
    taken = summed(samples)
    assert whole(decided, taken) is not None
    taken.pop("lm_head.weight")
    assert whole(decided, taken) is None and inside(decided, taken) is None


def test_places_of_other_decoders() -> None:
    """No list of architectures: names alone say what stands where."""
    names = {
        "transformer.wte.weight": ("in", "tokens"),
        "transformer.wpe.weight": ("in", "tokens"),
        "transformer.h.3.ln_1.weight": ("3", "norm"),
        "transformer.h.3.attn.c_attn.bias": ("3", "c_attn"),
        "transformer.h.3.attn.c_proj.weight": ("3", "attn.c"),
        "transformer.h.3.mlp.c_proj.weight": ("3", "mlp.c"),
        "transformer.ln_f.weight": ("out", "norm"),
        "model.layers.10.block_sparse_moe.experts.7.w1.weight": ("10", "w1"),
        "model.layers.10.self_attn.q_norm.weight": ("10", "norm"),
        "lm_head.weight": ("out", "tokens"),
        "single": ("out", "single"),
    }
    found = modules(names)
    assert {name: (place(name), found[name]) for name in names} == names
    assert [*found.values()][-3:] == ["tokens"] * 3
