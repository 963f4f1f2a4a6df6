"""Pins the steps of TIES, SLERP and the averages down by tables made by hand, and the engine to the
plain float64 formulas on random tensors; knows nothing of other programs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from merging.blocks import merge_tensor
from merging.methods import methods
from tests import reference

HALF = 2**-0.5
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = 2.0**-21

TRIMS = [
    ([3, -1, 2, -4], 0.5, [3, 0, 0, -4]),
    ([3, -1, 2, -4], 1.0, [3, -1, 2, -4]),
    ([3, -1, 2, -4], 7.0, [3, -1, 2, -4]),
    ([3, -1, 2, -4], 0.0, [0, 0, 0, 0]),
    ([3, -1, 2, -4], 0.74, [3, 0, 0, -4]),
    ([3, -1, 2, -4], 0.75, [3, 0, 2, -4]),
    ([3, -1, 2, -4], 0.01, [0, 0, 0, -4]),
    ([1, -1, 1, -1], 0.5, [1, -1, 0, 0]),
    ([2, 5, -2, 2, -5, 2], 0.7, [2, 5, -2, 0, -5, 0]),
    ([0, 0, 0, 1], 0.5, [0, 0, 0, 1]),
    ([0, 0, 0, 0], 0.5, [0, 0, 0, 0]),
    ([-7], 0.3, [-7]),
]

# weight, deltas of the models (a row a model), normalize, the merged delta
MERGES = [
    ([1, 1], [[1, 2], [3, -1]], True, [2, 2]),
    ([1, 1], [[1, 2], [3, -1]], False, [4, 2]),
    ([0.25, 1], [[1, 4], [-0.875, -1]], True, [-0.875, 4]),
    ([2, 2], [[1], [0.5]], True, [0.75]),
    ([2, 2], [[1], [0.5]], False, [3]),
    ([1, 3], [[4, -4], [8, 4]], True, [7, 4]),
    ([1, 1], [[1, -1], [-1, 1]], True, [1, 1]),
    ([1, 1, 1], [[1, 0, -6], [0, 0, 2], [5, 0, 2]], True, [3, 0, -6]),
    ([0, 0], [[1, 2], [3, 4]], True, [0, 0]),
    ([-1, 1], [[2, 2], [3, 1]], False, [3, -2]),
    ([-1], [[2, -2]], True, [2, -2]),
]

SLERPS = [
    ([1, 0], [0, 1], 0.5, [HALF, HALF]),
    ([3, 0], [0, 4], 0.5, [3 * HALF, 4 * HALF]),
    ([1, 0], [0, 1], 1 / 3, [0.75**0.5, 0.5]),
    ([1, 0], [-0.5, 0.75**0.5], 0.5, [0.5, 0.75**0.5]),
    ([1, 0], [2, 0], 0.5, [1.5, 0]),
    ([1, 0], [-1, 0], 0.25, [0.5, 0]),
    ([0, 0], [2, 0], 0.5, [1, 0]),
    ([2, 0], [0, 0], 0.25, [1.5, 0]),
    ([0, 0], [0, 0], 0.5, [0, 0]),
    ([1, 0], [0, 1], 0.0, [1, 0]),
    ([1, 0], [0, 1], 1.0, [0, 1]),
]


def floats(values: Any) -> np.ndarray:
    """A float32 array."""
    return np.array(values, dtype=np.float32)


def engine(name: str, models: Any, base: Any = None, **parameters: Any) -> np.ndarray:
    """What the package makes of arrays, float32; what is not said is at its default."""
    method = methods()[name]
    values = {
        p.name: [p.control.default] * len(models) if p.per_model else p.control.default
        for p in method.parameters
    }
    values |= {("lambda" if key == "lam" else key): value for key, value in parameters.items()}
    merged = merge_tensor(
        method,
        [torch.as_tensor(x) for x in models],
        None if base is None else torch.as_tensor(base),
        values,
        out_dtype=torch.float32,
    )
    return np.asarray(merged.numpy())


@pytest.mark.parametrize(("values", "density", "kept"), TRIMS)
def test_trim_by_hand(values: list[float], density: float, kept: list[float]) -> None:
    """Trim keeps exactly k of the largest magnitudes, the first of equals."""
    zero = np.zeros(len(values), dtype=np.float32)
    assert reference.trim(np.array(values, dtype=float), density).tolist() == kept
    got = engine("ties", [floats(values)], zero, weight=[1.0], density=[density])
    assert got.tolist() == kept


def test_kept_count_is_the_floor_of_the_float_product() -> None:
    """0.29 * 100 is 28.999... in floating point, and so mergekit keeps 28 of 100."""
    values = np.arange(1, 101, dtype=np.float32)
    assert reference.kept_count(100, 0.29) == 28
    got = engine("ties", [values], np.zeros_like(values), weight=[1.0], density=[0.29])
    assert np.flatnonzero(got).tolist() == list(range(72, 100))


@pytest.mark.parametrize(
    ("votes", "sign"),
    [
        ([[1.0, -2.0], [-0.5, 1.0]], [1, -1]),
        ([[1.0, 0.0], [-1.0, 0.0]], [1, 1]),
        ([[3.0], [-1.0], [-1.0]], [1]),
    ],
)
def test_elect_by_hand(votes: list[list[float]], sign: list[int]) -> None:
    """The heavier side wins, and a draw is positive."""
    assert reference.elect(np.array(votes)).tolist() == sign


def test_elect_of_the_paper_by_hand() -> None:
    """In the paper's code a draw follows the majority elsewhere, else it is negative."""
    draw = np.array([[1.0, 2.0], [-1.0, 2.0]])
    assert reference.elect_paper(draw).tolist() == [1, 1]
    assert reference.elect_paper(-draw).tolist() == [-1, -1]
    assert reference.elect_paper(np.array([[1.0], [-1.0]])).tolist() == [-1]


@pytest.mark.parametrize(("weight", "deltas", "normalize", "merged"), MERGES)
def test_disjoint_merge_by_hand(
    weight: list[float], deltas: list[list[float]], normalize: bool, merged: list[float]
) -> None:
    """Only what agrees with the elected sign is averaged, by the weights that agree."""
    base = np.zeros(len(deltas[0]), dtype=np.float32)
    given: dict[str, Any] = {"weight": weight, "density": [1.0] * len(weight)}
    by_formula = reference.ties([floats(d) for d in deltas], base, **given, normalize=normalize)
    assert by_formula.tolist() == merged
    got = engine("ties", [floats(d) for d in deltas], base, **given, normalize=normalize)
    assert got.tolist() == merged


def test_the_three_ties_by_hand() -> None:
    """mergekit weighs before the vote; PEFT after it, dividing by a count; the paper not at all."""
    zero, models = floats([0.0]), [floats([1.0]), floats([-0.875])]
    given: dict[str, Any] = {"weight": [0.25, 1.0], "density": [1.0, 1.0]}
    wanted = {"mergekit": -0.875, "peft": 0.25, "paper": 1.0}
    assert reference.ties(models, zero, **given).tolist() == [wanted["mergekit"]]
    assert reference.ties_peft(models, zero, **given).tolist() == [wanted["peft"]]
    assert reference.ties_paper(models, zero, density=[1.0, 1.0]).tolist() == [wanted["paper"]]


def test_trims_of_paper_and_peft_by_hand() -> None:
    """The paper keeps all that reach the (k + 1)-th magnitude, PEFT exactly k, even none."""
    values = np.array([3.0, -1.0, 2.0, -4.0, 2.0])
    assert reference.trim_paper(values, 0.4).tolist() == [3, 0, 2, -4, 2]
    assert reference.trim_peft(values, 0.4).tolist() == [3, 0, 0, -4, 0]
    assert reference.trim_peft(values, 0.1).tolist() == [0] * 5


@pytest.mark.parametrize(("first", "second", "t", "wanted"), SLERPS)
def test_slerp_by_hand(
    first: list[float], second: list[float], t: float, wanted: list[float]
) -> None:
    """An arc between directions, a chord where there is no angle, no length or no arc."""
    pair = [floats(first), floats(second)]
    assert reference.slerp(*pair, t) == pytest.approx(np.array(wanted), abs=1e-7)
    assert engine("slerp", pair, t=t) == pytest.approx(np.array(wanted), abs=2e-7)


def test_averages_by_hand() -> None:
    """Linear divides by the sum of the weights; task arithmetic does not unless asked."""
    base, models = floats([1.0, 1.0]), [floats([3.0, 1.0]), floats([1.0, -3.0])]
    weight = [1.0, 3.0]
    assert reference.linear(models, weight=weight).tolist() == [1.5, -2]
    assert engine("linear", models, weight=weight).tolist() == [1.5, -2]
    assert engine("linear", models, weight=weight, normalize=False).tolist() == [6, -8]
    assert reference.task_arithmetic(models, base, weight=weight).tolist() == [3, -11]
    got = engine("task_arithmetic", models, base, weight=weight, lam=0.5, normalize=True)
    assert got.tolist() == [1.25, -0.5]


def random_models(seed: int, size: int, dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    """A base and fine-tunes of it; in bfloat16 and float16 many deltas have equal magnitudes."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.05, size)
    steps = [rng.standard_t(4, size) * 0.003 for _ in range(count)]
    return [torch.from_numpy(x).to(dtype) for x in (base, *(base + s for s in steps))]


def plain(tensor: torch.Tensor) -> np.ndarray:
    """The values as float32."""
    return np.asarray(tensor.float().numpy())


def undecided(models: list[np.ndarray], base: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    """Where the vote is so close that float32 and float64 may call it differently."""
    kept = [
        w * reference.trim(reference.delta(x, base), d)
        for x, w, d in zip(models, given["weight"], given["density"], strict=True)
    ]
    total, mass = np.abs(sum(kept)), sum(np.abs(k) for k in kept)
    exact = all(float(w).is_integer() for w in given["weight"])
    return (total <= 1e-6 * mass) & (mass > 0) & (not exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 1000, 70_001])
@pytest.mark.parametrize("weight", [[1.0], [1.0, 2.0], [0.7, 0.3], [1.5, 0.4, 2.0]], ids=str)
@pytest.mark.parametrize("density", [0.02, 0.2, 0.5, 0.99])
def test_ties_is_the_formula(
    dtype: torch.dtype, size: int, weight: list[float], density: float
) -> None:
    """Element by element the engine's TIES is the float64 formula, equal magnitudes included."""
    base, *models = random_models(size, size, dtype, len(weight))
    given: dict[str, Any] = {"weight": weight, "density": [density] * len(weight), "lam": 0.9}
    got = engine("ties", models, base, **given)
    arrays, origin = [plain(x) for x in models], plain(base)
    wanted = reference.ties(arrays, origin, **given)
    scale = np.abs(origin) + sum(np.abs(reference.delta(x, origin)) for x in arrays)
    close_call = undecided(arrays, origin, given)
    assert close_call.mean() <= 0.01
    assert not ((np.abs(got - wanted) > ROUNDING * scale) & ~close_call).any()


@pytest.mark.parametrize("density", [[0.02, 0.5], [0.3, 1.0], [0.0, 1.0], [1.0, 1.0]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rescaled_ties_keeps_the_sum(dtype: torch.dtype, density: list[float]) -> None:
    """`rescale` multiplies each trimmed delta by what brings its sum of |δ| back, ties included."""
    base, *models = random_models(3, 700_001, dtype, 2)
    origin, arrays = plain(base), [plain(x) for x in models]
    for model, array, kept in zip(models, arrays, density, strict=True):
        given = {"density": [kept], "rescale": True, "normalize": False}
        got = engine("ties", [model], base, **given).astype(np.float64) - origin
        before = np.abs(reference.delta(array, origin)).sum()
        trimmed = reference.trim(reference.delta(array, origin), kept)
        after = np.abs(trimmed).sum()
        wanted = trimmed * (before / after if after else 1.0)
        assert np.allclose(got, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))
        assert (np.abs(got).sum() == 0) == (kept == 0)


def test_a_delta_of_nothing_is_not_stretched() -> None:
    """0 over 0 is no factor."""
    base = np.ones(5, dtype=np.float32)
    assert engine("ties", [base], base, density=[0.5], rescale=True).tolist() == [1] * 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 1000, 70_001])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_slerp_is_the_formula(dtype: torch.dtype, size: int, t: float) -> None:
    """SLERP of unrelated and of nearly equal tensors is the float64 formula."""
    base, near = random_models(size, size, dtype, 1)
    _, far = random_models(size + 1, size, dtype, 1)
    for pair in ([base, near], [base, far]):
        wanted = reference.slerp(plain(pair[0]), plain(pair[1]), t)
        scale = np.abs(plain(pair[0])) + np.abs(plain(pair[1]))
        assert not (np.abs(engine("slerp", pair, t=t) - wanted) > 2 * ROUNDING * scale).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_averages_are_their_formulas(dtype: torch.dtype, normalize: bool) -> None:
    """Linear and task arithmetic are their float64 formulas."""
    base, *models = random_models(3, 70_001, dtype, 3)
    arrays, origin = [plain(x) for x in models], plain(base)
    weight = [1.5, -0.4, 2.0]
    scale = np.abs(origin) + 2 * sum(np.abs(x) for x in arrays)
    wanted = reference.linear(arrays, weight=weight, normalize=normalize)
    got = engine("linear", models, weight=weight, normalize=normalize)
    assert not (np.abs(got - wanted) > ROUNDING * scale).any()
    given: dict[str, Any] = {"weight": weight, "lam": 0.7, "normalize": normalize}
    wanted = reference.task_arithmetic(arrays, origin, **given)
    got = engine("task_arithmetic", models, base, **given)
    assert not (np.abs(got - wanted) > ROUNDING * scale).any()
