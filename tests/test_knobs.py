"""Which numbers of a recipe can be turned, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging import Recipe, methods
from merging.errors import MergeError
from merging.knobs import Knob, along, knobs, turned
from merging.recipe import Input, Slice

TIES = Recipe(
    "ties", (Input("a", {"density": 0.3}), Input("b")), base_model="base",
    parameters={"lambda": 1.0},
)  # fmt: skip


def test_every_number_that_a_method_declares() -> None:
    """Once for all models, and once for each where each has its own; no switches."""
    assert [*knobs(TIES)] == [
        Knob("lambda"), Knob("weight"), Knob("density"), Knob("weight", "a"), Knob("weight", "b"),
        Knob("density", "a"), Knob("density", "b"),
    ]  # fmt: skip
    for name in methods():
        assert all(knob.name not in ("normalize", "rescale") for knob in knobs(Recipe(name)))
    assert [*knobs(Recipe("slerp"))] == [Knob("t")]


def test_a_base_among_the_models_has_none() -> None:
    """Its delta is 0, so that its weight moves nothing; merged like the others it has one."""
    listed = (*TIES.models, Input("base"))
    assert [*knobs(replace(TIES, models=listed))] == [*knobs(TIES)]
    linear = Recipe("linear", listed, base_model="base")
    assert Knob("weight", "base") in knobs(linear)


def test_only_the_knob_moves() -> None:
    assert turned(TIES, Knob("lambda"), 2.0) == replace(TIES, parameters={"lambda": 2.0})
    both = turned(TIES, Knob("density"), 0.5)
    assert [m.parameters for m in both.models] == [{"density": 0.5}] * 2
    one = turned(TIES, Knob("density", "b"), 0.5)
    assert [m.parameters for m in one.models] == [{"density": 0.3}, {"density": 0.5}]


@given(st.integers(3, 21), st.floats(-5, 5), st.floats(0.1, 10))
def test_values_are_equally_far_apart(count: int, low: float, width: float) -> None:
    high = low + width
    found = [*along(TIES, Knob("lambda"), low, high, count)]
    assert len(found) == count
    assert found[0] == pytest.approx(low, abs=1e-5) and found[-1] == pytest.approx(high, abs=1e-4)
    gaps = [b - a for a, b in pairwise(found)]
    assert gaps == pytest.approx([width / (count - 1)] * (count - 1), abs=2e-4)


def test_round_values() -> None:
    """As people would write them: no 0.30000000000000004."""
    assert [*along(TIES, Knob("lambda"), 0, 0.5, 6)] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("recipe", "knob", "values", "words"),
    [
        (TIES, Knob("t"), (0, 1, 3), "`t` is no number of TIES: choose one of lambda, weight"),
        (TIES, Knob("normalize"), (0, 1, 3), "no number of TIES"),
        (TIES, Knob("lambda", "a"), (0, 1, 3), "no value of its own for a"),
        (TIES, Knob("density", "c"), (0, 1, 3), "no value of its own for c"),
        (TIES, Knob("lambda"), (1, 1, 3), "1 to 1 is no range"),
        (TIES, Knob("lambda"), (0, float("nan"), 3), "no range"),
        (TIES, Knob("lambda"), (0, 1, 2), "2 values cannot be swept: choose 3 to 21"),
        (TIES, Knob("lambda"), (0, 1, 22), "22 values"),
        (TIES, Knob("density"), (0, 1.5, 3), "must stay within 0 to 1"),
        (
            replace(TIES, parameters={"density": [0.1, 0.9]}), Knob("density"), (0, 1, 3),
            "set in YAML, by layers or filters",
        ),
        (
            replace(TIES, models=(Input("a", {"weight": [{"value": 1.0}]}), Input("b"))),
            Knob("weight", "b"), (0, 1, 3), "set in YAML",
        ),
        (
            Recipe("ties", slices=(Slice((Input("a"), Input("b"))),), base_model="base"),
            Knob("lambda"), (0, 1, 3), "set in YAML",
        ),
        (Recipe("tie"), Knob("lambda"), (0, 1, 3), "did you mean `ties`"),
    ],
)  # fmt: skip
def test_refused(recipe: Recipe, knob: Knob, values: tuple[float, float, int], words: str) -> None:
    with pytest.raises(MergeError, match=words.replace("(", r"\(")):
        along(recipe, knob, *values)
