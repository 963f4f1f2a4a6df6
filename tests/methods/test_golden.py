"""Compares the engine with numbers that mergekit 0.1.5 gave in float32; knows no formula itself.

At a trim mergekit leaves it open which of several equal magnitudes survive, so the elements at a
contested threshold are set aside; everything else must agree to float32 rounding.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from merging.blocks import merge_tensor
from merging.methods import methods
from tests import reference

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())["cases"]
ON_DELTAS = ("ties", "task_arithmetic")
ROUNDING = 2.0**-22


@cache
def inputs() -> dict[str, torch.Tensor]:
    """The stored tensors by FAMILY/MODEL."""
    return load_file(GOLDEN / "inputs.safetensors")


@cache
def answers() -> list[np.ndarray]:
    """The peer's answers, flat, in the order of the cases."""
    sizes = [tensors_of(case)[0].numel() for case in CASES]
    flat = np.load(GOLDEN / "outputs.npz")["answers"]
    assert flat.size == sum(sizes)
    return np.split(flat, np.cumsum(sizes)[:-1])


def tensors_of(case: dict[str, Any]) -> list[torch.Tensor]:
    """The models of a case, in its order."""
    return [inputs()[f"{case['inputs']}/{model}"] for model in case["models"]]


def base_of(case: dict[str, Any]) -> torch.Tensor | None:
    """The base of a case, where its method has one."""
    return inputs()[f"{case['inputs']}/base"] if case["method"] in ON_DELTAS else None


def plain(tensor: torch.Tensor) -> np.ndarray:
    """The values as float32, flat."""
    return np.asarray(tensor.float().numpy()).reshape(-1)


def contested(case: dict[str, Any]) -> np.ndarray:
    """Where the peer's trim chose among equal magnitudes, for any of the models."""
    aside = np.zeros(tensors_of(case)[0].numel(), dtype=bool)
    if case["method"] != "ties":
        return aside
    base = plain(inputs()[f"{case['inputs']}/base"])
    for tensor, density in zip(tensors_of(case), case["parameters"]["density"], strict=True):
        sizes = np.abs(reference.delta(plain(tensor), base))
        count = reference.kept_count(sizes.size, density)
        threshold = np.sort(sizes)[-count]
        if threshold > 0 and (sizes >= threshold).sum() > count:
            aside |= sizes == threshold
    return aside


def magnitude(case: dict[str, Any]) -> np.ndarray:
    """The size of the numbers that were added up at each element: what rounding is relative to."""
    tensors = [plain(x) for x in tensors_of(case)]
    factors = np.abs(case["parameters"].get("weight", [1.0] * len(tensors)))
    base = base_of(case)
    if base is None:
        return sum(max(f, 1.0) * np.abs(x) for f, x in zip(factors, tensors, strict=True))
    steps = sum(
        max(f, 1.0) * np.abs(reference.delta(x, plain(base)))
        for f, x in zip(factors, tensors, strict=True)
    )
    return np.abs(plain(base)) + max(case["parameters"]["lambda"], 1.0) * steps


def expected_by_formula(case: dict[str, Any]) -> np.ndarray:
    """The same case by the plain float64 formulas."""
    given = {("lam" if k == "lambda" else k): v for k, v in case["parameters"].items()}
    tensors = [plain(x) for x in tensors_of(case)]
    if case["method"] == "slerp":
        return reference.slerp(*tensors, **given)
    base = base_of(case)
    formula = getattr(reference, case["method"])
    return formula(tensors, **given) if base is None else formula(tensors, plain(base), **given)


def name_of(case: dict[str, Any]) -> str:
    """A readable test id."""
    values = ",".join(f"{k}={v}" for k, v in case["parameters"].items() if k != "weight")
    return f"{case['method']}-{case['inputs']}-{case['models']}-{values}"


EACH_CASE = pytest.mark.parametrize("index", range(len(CASES)), ids=[name_of(c) for c in CASES])


def assert_agrees(case: dict[str, Any], got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal to float32 rounding wherever the peer's answer is determined."""
    off = np.abs(got.reshape(-1).astype(np.float64) - wanted) > ROUNDING * magnitude(case)
    wrong = np.flatnonzero(off & ~contested(case))
    shown = [(int(i), float(got.reshape(-1)[i]), float(wanted[i])) for i in wrong[:5]]
    assert not wrong.size, f"{wrong.size} of {wanted.size} differ: (index, got, wanted) {shown}"


@EACH_CASE
def test_engine_agrees_with_the_peer(index: int) -> None:
    """The engine gives mergekit's numbers to float32 rounding."""
    case = CASES[index]
    got = merge_tensor(
        methods()[case["method"]],
        tensors_of(case),
        base_of(case),
        case["parameters"],
        out_dtype=torch.float32,
    )
    assert got.dtype == torch.float32
    assert got.shape == tensors_of(case)[0].shape
    assert_agrees(case, got.numpy(), answers()[index])


@EACH_CASE
def test_formulas_agree_with_the_peer(index: int) -> None:
    """The float64 yardstick of these tests gives mergekit's numbers to float32 rounding."""
    assert_agrees(CASES[index], expected_by_formula(CASES[index]), answers()[index])


def test_few_elements_are_set_aside() -> None:
    """The comparison stays a comparison: hardly any element is left out, none in plain float32."""
    ties = [case for case in CASES if case["method"] == "ties"]
    shares = [contested(case).mean() for case in ties]
    sizes = [tensors_of(case)[0].numel() for case in ties]
    assert np.average(shares, weights=sizes) < 0.03
    for case, share in zip(ties, shares, strict=True):
        assert share == 0 or case["inputs"] not in ("vector-f32", "matrix-f32", "single-f32")
        assert share <= 0.25, name_of(case)


def test_cases_cover_the_grid() -> None:
    """The stored cases reach every method, dtype and edge that they are meant to pin down."""
    seen = {(case["method"], case["inputs"]) for case in CASES}
    for dtype in ("f32", "bf16", "f16"):
        assert all((method, f"vector-{dtype}") in seen for method in (*ON_DELTAS, "linear"))
    assert {("slerp", "near-99945"), ("slerp", "near-99955"), ("ties", "mirrored")} <= seen
    assert {len(case["models"]) for case in CASES if case["method"] == "ties"} == {1, 2, 3}
