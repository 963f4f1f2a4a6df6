"""TIES as its authors' code and as PEFT have it: against plain formulas on whole models, against
numbers that PEFT gave, and how the loop measures a model as one vector.
"""

from __future__ import annotations

import itertools
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from merging import merge, methods, plan
from merging.blocks import merge_tensor
from merging.errors import MergeError
from merging.merge import Numbers, Progress
from merging.methods import variants
from merging.plan import Plan
from merging.recipe import Recipe
from merging.sinks import Folder
from tests import reference
from tests.conftest import WEIGHTS, changed, loaded, recipe

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "variants.json").read_text())["cases"]
PAPER, PEFT = variants("ties")["paper"], variants("ties")["peft"]
ROUNDING = 2.0**-22
LOOP, MERGE, THREADS = (sys.modules[f"merging.{name}"] for name in ("blocks", "merge", "threads"))
Pico = dict[str, Path]
Tensors = dict[str, torch.Tensor]

few = settings(deadline=None, derandomize=True, max_examples=25, database=None)


def test_variants_are_declared() -> None:
    """Each name has its variants, mergekit's first, and `methods` has mergekit's only."""
    assert list(variants("ties")) == ["mergekit", "paper", "peft"]
    assert list(variants("linear")) == ["mergekit"] and variants("other") == {}
    assert variants("ties")["mergekit"] is methods()["ties"]
    assert {m.variant for m in methods().values()} == {"mergekit"}
    assert [p.name for p in PAPER.parameters] == ["density", "lambda"]
    assert [p.name for p in PEFT.parameters] == ["weight", "density", "lambda"]


# The authors' code: a whole model as one vector


def paper(pico: Pico, density: Any = (0.2, 0.6), **keys: Any) -> Plan:
    entries = [(pico[m], {"density": d}) for m, d in zip("ac", density, strict=True)]
    keys = {"variant": "paper", "base_model": pico["base"], "out_dtype": "float32"} | keys
    return plan(recipe("ties", entries, **keys))


def made(decided: Plan, out: Path, numbers: Numbers | None = None) -> Tensors:
    for _ in merge(decided, Folder(out), numbers):
        pass
    return loaded(out)


def flat(tensors: Tensors, names: list[str]) -> np.ndarray:
    return np.concatenate([tensors[n].float().numpy().reshape(-1) for n in names])


def vectors(pico: Pico, *models: str) -> tuple[list[str], list[np.ndarray]]:
    """The names of a pico model's tensors, and models as one float32 vector each."""
    held = [load_file(pico[m] / WEIGHTS) for m in models]
    names = sorted(held[0])
    return names, [flat(tensors, names) for tensors in held]


def test_a_whole_model_agrees_with_the_formula(pico: Pico, tmp_path: Path) -> None:
    """Bfloat16 parents, of which many magnitudes equal the threshold: every element agrees."""
    names, (a, c, base) = vectors(pico, "a", "c", "base")
    wanted = reference.ties_paper([a, c], base, density=[0.2, 0.6], lam=0.7)
    found = made(paper(pico, parameters={"lambda": 0.7}), tmp_path / "out")
    error = np.abs(flat(found, names) - wanted)
    assert (error <= ROUNDING * (np.abs(a) + np.abs(c) + np.abs(base))).all()
    sizes = np.abs(reference.delta(a, base))
    threshold = np.sort(sizes)[sizes.size - int(sizes.size * 0.2) - 1]
    assert (sizes >= threshold).sum() > int(sizes.size * 0.2) + 1


def steps(majority: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two whole-numbered deltas; each entry of theirs has its opposite elsewhere, unless one
    sign is to win more entries.
    """
    rng = np.random.default_rng(5)
    half = rng.integers(-4, 5, (2, size // 2))
    other = -half
    if majority:
        won = (half.sum(0) * majority < 0) & (rng.random(size // 2) < 0.7)
        half[:, won] *= -1
        other = half[:, ::-1]
    both = np.concatenate([half, other, np.zeros((2, size % 2), dtype=int)], axis=1)
    order = rng.permutation(size)
    return both[0, order], both[1, order]


@pytest.mark.parametrize("majority", [1, -1, 0])
@pytest.mark.parametrize("density", [(0.3, 0.3), (0.1, 0.9), (1.0, 1.0), (0.5, 1.0)], ids=str)
def test_draws_follow_the_majority(
    majority: int, density: tuple[float, float], pico: Pico, tmp_path: Path
) -> None:
    """A sum of 0 takes the sign that won most entries of the model, and is negative if none did."""
    names, (base,) = vectors(pico, "base")
    base = np.round(base * 8)
    pair = steps(majority, base.size)
    shapes = {n: x.shape for n, x in load_file(pico["base"] / WEIGHTS).items()}
    ends = np.cumsum([torch.Size(shapes[n]).numel() for n in names])[:-1]
    folders = {}
    for name, values in zip(
        ("base", "a", "c"), (base, base + pair[0], base + pair[1]), strict=True
    ):
        cut = np.split(values.astype(np.float32), ends)
        whole = {n: torch.from_numpy(x).view(shapes[n]) for n, x in zip(names, cut, strict=True)}
        folders[name] = changed(pico["base"], tmp_path / name, tensors=whole)

    kept = np.stack([reference.trim_paper(d, k) for d, k in zip(pair, density, strict=True)])
    if density[0] == density[1]:
        assert np.sign(np.sign(kept.sum(0)).sum()) == majority
    draws = (kept.sum(0) == 0) & (kept[0] != 0)
    assert draws.sum() > 100
    models = [(base + d).astype(np.float32) for d in pair]
    wanted = reference.ties_paper(models, base, density=list(density))
    found = flat(made(paper(folders, density), tmp_path / "out"), names)
    assert np.array_equal(found, wanted)
    if density[0] == density[1]:
        up = found[draws] > base[draws]
        assert up.all() if majority > 0 else not up.any()


def by_hand(deltas: list[list[float]], **values: Any) -> list[float]:
    """The paper's merge of one tensor over a base of zeros."""
    given = {"density": [1.0] * len(deltas), "lambda": 1.0} | values
    base = torch.zeros(len(deltas[0]))
    return merge_tensor(PAPER, [torch.tensor(d) for d in deltas], base, given).tolist()


@pytest.mark.parametrize(
    ("density", "kept"),
    [
        (0.0, [0, 0, 0, -4, 0]),
        (0.2, [3, 0, 0, -4, 0]),
        (0.4, [3, 0, 2, -4, 2]),
        (0.8, [3, -1, 2, -4, 2]),
        (1.0, [3, -1, 2, -4, 2]),
    ],
)
def test_trim_of_the_paper_by_hand(density: float, kept: list[float]) -> None:
    """One more than the floor of density * n stays, and all that equal it."""
    assert by_hand([[3.0, -1.0, 2.0, -4.0, 2.0]], density=[density]) == kept


def test_merge_of_the_paper_by_hand() -> None:
    """The mean of what agrees, zeros not counted; draws up, down, and down where none leads."""
    assert by_hand([[1, 4, -6, 3], [3, 0, 2, 5], [-1, 2, 0, 0]]) == [2, 3, -6, 4]
    assert by_hand([[1, 5], [-1, 5]]) == [1, 5]
    assert by_hand([[1, -5], [-1, -5]]) == [-1, -5]
    assert by_hand([[1, 5, -5], [-1, 5, -5]]) == [-1, 5, -5]
    assert by_hand([[2.0], [4.0]], **{"lambda": 0.5}) == [1.5]


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_the_paper_is_the_same_upside_down(seed: int) -> None:
    """Deltas of the opposite sign give the opposite, where no sum is 0."""
    rng = np.random.default_rng(seed)
    base = torch.zeros(9, 7)
    models = [torch.from_numpy(rng.standard_t(4, (9, 7))).float() for _ in range(3)]
    values = {"density": list(rng.uniform(0.1, 1, 3)), "lambda": 0.9}
    kept = [reference.trim_paper(m.double().numpy(), d)
            for m, d in zip(models, values["density"], strict=True)]  # fmt: skip
    clear = np.sum(kept, axis=0) != 0
    one = merge_tensor(PAPER, models, base, values).numpy()
    other = merge_tensor(PAPER, [-m for m in models], base, values).numpy()
    assert np.array_equal(one[clear], -other[clear]) and clear.any()


# One measure for all tensors


def test_the_whole_is_measured_once(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other lambdas use what was found; another density, variant or stack of layers does not."""
    numbers: Numbers = {}
    made(paper(pico), tmp_path / "first", numbers)
    assert len(numbers) == 1
    stronger = paper(pico, parameters={"lambda": 1.7})
    with monkeypatch.context() as patched:
        patched.setattr(MERGE, "measure", lambda *_: pytest.fail("measured again"))
        again = made(stronger, tmp_path / "again", numbers)
    fresh = made(stronger, tmp_path / "fresh")
    assert all(torch.equal(again[n], fresh[n]) for n in fresh)
    made(paper(pico, (0.2, 0.5)), tmp_path / "other", numbers)
    assert len(numbers) == 2
    for variant in ("peft", "mergekit"):
        made(paper(pico, variant=variant), tmp_path / variant, numbers)
    assert len(numbers) == 2 + 2 * len(fresh)


def stacked(pico: Pico, variant: str, order: tuple[int, ...], models: str = "ac") -> Plan:
    """One layer after the other; `ac` is both models in each, `a,c` one and then the other."""
    pieces = [
        {"sources": [
            {"model": str(pico[m]), "layer_range": [i, i + 1], "parameters": {"density": 0.3}}
            for m in own
        ]}
        for i, own in zip(order, itertools.cycle(models.split(",")), strict=False)
    ]  # fmt: skip
    keys = {"base_model": str(pico["base"]), "out_dtype": "float32", "variant": variant}
    return plan(Recipe.from_yaml(yaml.safe_dump({"merge_method": "ties", "slices": pieces} | keys)))


@pytest.mark.parametrize("variant", ["mergekit", "paper", "peft"])
def test_numbers_of_another_stack_are_not_used(variant: str, pico: Pico, tmp_path: Path) -> None:
    """Layers in another order have tensors of the same names, and their own numbers."""

    numbers: Numbers = {}
    made(stacked(pico, variant, (0, 1)), tmp_path / "before", numbers)
    for name, order in {"turned": (1, 0), "deeper": (0, 1, 1)}.items():
        found = made(stacked(pico, variant, order), tmp_path / name, numbers)
        fresh = made(stacked(pico, variant, order), tmp_path / f"{name}-fresh")
        assert all(torch.equal(found[n], fresh[n]) for n in fresh)


def test_blocks_and_threads_do_not_show(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of a merge measured as a whole are the same for any blocks and cores."""
    files = set()
    for block, count in ((1 << 18, 1), (97, 2), (1000, 5)):
        monkeypatch.setattr(LOOP, "BLOCK", block)
        monkeypatch.setattr(THREADS, "cores", lambda count=count: count)
        made(paper(pico), tmp_path / str(block))
        files.add((tmp_path / str(block) / WEIGHTS).read_bytes())
    assert len(files) == 1


def test_progress_of_the_measure(pico: Pico, tmp_path: Path) -> None:
    """Three passes over the model are told before the first tensor is merged."""
    decided = paper(pico)
    seen: list[Progress] = list(merge(decided, Folder(tmp_path / "out")))
    stages = [p.stage for p in seen]
    count = stages.index("merge")
    assert set(stages[:count]) == {"measure"} and set(stages[count:]) == {"merge"}
    assert [p.share for p in seen[:count]].count(1.0) == 3
    assert all(0 < p.share <= 1 and p.seconds_left >= 0 for p in seen[:count])
    assert seen[-1].share == 1.0


def test_what_is_copied_is_not_measured(pico: Pico, tmp_path: Path) -> None:
    """A tensor of integers changes neither thresholds nor votes."""
    ids = {"model.position_ids": torch.arange(9000)}
    more = {n: changed(pico[n], tmp_path / n, tensors=ids) for n in ("a", "c", "base")}
    plain, found = made(paper(pico), tmp_path / "plain"), made(paper(more), tmp_path / "more")
    assert torch.equal(found.pop("model.position_ids"), torch.arange(9000))
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[n], plain[n]) for n in plain)


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_unchanged_models_give_the_base(density: float, pico: Pico, tmp_path: Path) -> None:
    """Deltas of 0 everywhere have a threshold of 0, no majority, and no effect."""
    same = {n: changed(pico["base"], tmp_path / n) for n in ("a", "c")} | {"base": pico["base"]}
    found = made(paper(same, (density, density)), tmp_path / "out")
    base = load_file(pico["base"] / WEIGHTS)
    assert all(torch.equal(found[n], base[n].float()) for n in base)


@pytest.mark.parametrize(
    "density", [[0.2, 0.8], [{"filter": "mlp", "value": 0.2}, {"value": 0.5}]], ids=str
)
def test_a_density_that_varies_is_refused(density: Any, pico: Pico, tmp_path: Path) -> None:
    """A model trimmed as a whole has one density; the others may vary it."""
    with pytest.raises(MergeError, match="`density` must be one number for each model"):
        made(paper(pico, (density, 0.2)), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    assert made(paper(pico, (density, 0.2), variant="peft"), tmp_path / "peft")


def test_slices_of_other_models_are_refused(pico: Pico, tmp_path: Path) -> None:
    """Slices that differ in their models have no whole model to trim."""
    with pytest.raises(MergeError, match="slices differ in their models: list the same"):
        made(stacked(pico, "paper", (0, 1), "a,c"), tmp_path / "out")


def test_damaged_values_are_told(pico: Pico, tmp_path: Path) -> None:
    """A value that is not finite passes the measure and stops the merge by its tensor's name."""
    norm = torch.full((32,), torch.nan, dtype=torch.bfloat16)
    bad = pico | {"a": changed(pico["a"], tmp_path / "a", tensors={"model.norm.weight": norm})}
    with pytest.raises(MergeError, match=r"not finite in `model\.norm\.weight`"):
        made(paper(bad), tmp_path / "out")


# PEFT


@cache
def inputs() -> Tensors:
    """The stored tensors by FAMILY/MODEL."""
    return load_file(GOLDEN / "inputs.safetensors")


@cache
def answers() -> list[np.ndarray]:
    """PEFT's merged deltas, in the order of the cases."""
    sizes = [inputs()[f"{case['inputs']}/base"].numel() for case in CASES]
    stored = np.load(GOLDEN / "variants.npz")["answers"]
    assert stored.size == sum(sizes)
    return np.split(stored, np.cumsum(sizes)[:-1])


def arrays(case: dict[str, Any]) -> tuple[list[np.ndarray], np.ndarray]:
    """The models and the base of a case, float32, flat."""
    read = [inputs()[f"{case['inputs']}/{m}"] for m in (*case["models"], "base")]
    *models, base = (x.float().numpy().reshape(-1) for x in read)
    return models, base


def contested(case: dict[str, Any]) -> np.ndarray:
    """Where PEFT's trim chose among equal magnitudes, for any of the models."""
    models, base = arrays(case)
    aside = np.zeros(base.size, dtype=bool)
    count = int(case["density"] * base.size)
    if count in (0, base.size):
        return aside
    for sizes in (np.abs(reference.delta(m, base)) for m in models):
        threshold = np.sort(sizes)[-count]
        if threshold > 0 and (sizes >= threshold).sum() > count:
            aside |= sizes == threshold
    return aside


def name_of(case: dict[str, Any]) -> str:
    return f"{case['inputs']}-{case['density']}-{case['weight']}"


EACH_CASE = pytest.mark.parametrize("index", range(len(CASES)), ids=[name_of(c) for c in CASES])


@EACH_CASE
@pytest.mark.parametrize("lam", [1.0, 0.6])
def test_peft_agrees(index: int, lam: float) -> None:
    """The engine and the plain formula give PEFT's numbers, but for what its trim leaves open."""
    case = CASES[index]
    models, base = arrays(case)
    wanted = base.astype(np.float64) + lam * answers()[index].astype(np.float64)
    density = [case["density"]] * len(models)
    formula = reference.ties_peft(models, base, weight=case["weight"], density=density, lam=lam)
    found = merge_tensor(
        PEFT,
        [inputs()[f"{case['inputs']}/{m}"] for m in case["models"]],
        inputs()[f"{case['inputs']}/base"],
        {"weight": case["weight"], "density": density, "lambda": lam},
        out_dtype=torch.float32,
    )
    factors = zip(case["weight"], models, strict=True)
    size = np.abs(base) + sum(max(abs(w), 1) * np.abs(m - base) for w, m in factors)
    clear = ~contested(case)
    for got in (found.numpy().reshape(-1), formula):
        assert (np.abs(got - wanted) <= ROUNDING * size)[clear].all()


def test_few_elements_are_set_aside() -> None:
    """Hardly any element is left out, none of the float32 inputs, and the edges are there."""
    aside = {name_of(case): contested(case) for case in CASES}
    assert np.concatenate(list(aside.values())).mean() < 0.03
    assert not any(a.any() for name, a in aside.items() if "-f32" in name)
    assert any((np.array(case["weight"]) < 0).any() for case in CASES)
    assert any(int(case["density"] * 64) == 0 and case["density"] for case in CASES)


@few
@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([0.25, 2.0, -1.0]))
def test_peft_scales_with_the_weights(seed: int, factor: float) -> None:
    """Weights come after the vote: all of them times c is the merged delta times c, even c < 0."""
    rng = np.random.default_rng(seed)
    base = torch.zeros(9, 7)
    models = [torch.from_numpy(rng.standard_t(4, (9, 7))).float() for _ in range(3)]
    weight = rng.uniform(0, 2, 3)
    values = {"density": list(rng.uniform(0.1, 1, 3)), "lambda": 1.0}
    one = merge_tensor(PEFT, models, base, values | {"weight": list(weight)})
    other = merge_tensor(PEFT, models, base, values | {"weight": list(factor * weight)})
    assert torch.equal(other, one * factor) and one.any()


@pytest.mark.parametrize("method", [PAPER, PEFT], ids=["paper", "peft"])
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_blocks_of_one_tensor_do_not_show(method: Any, seed: int) -> None:
    """In memory, too: blocks of any size give the same bytes, and the inputs stay as they were."""
    rng = np.random.default_rng(seed)
    base, *models = (torch.from_numpy(rng.integers(-4, 5, (11, 9)) / 4).float() for _ in range(4))
    before = [m.clone() for m in models]
    every = {"weight": [1.0, 0.5, 2.0], "density": list(rng.uniform(0, 1, 3)), "lambda": 0.7}
    values = {p.name: every[p.name] for p in method.parameters}
    results = [merge_tensor(method, models, base, values, block=size) for size in (13, 40, 1 << 20)]
    assert all(torch.equal(r, results[0]) for r in results)
    assert all(torch.equal(m, b) for m, b in zip(models, before, strict=True))
