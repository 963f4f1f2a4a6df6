"""The recipes of `tests/recipes`, in forms that cards on the Hub have: each is read, planned or
refused as its own comment expects; and random recipes survive being written and read again.

It knows no method's numbers: `base`, `a`, `b` and `c` in a recipe are the pico models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import MergeError, Recipe, plan
from merging.methods import variants
from merging.opening import open_source
from merging.recipe import DTYPES

RECIPES = sorted((Path(__file__).parent / "recipes").glob("*.yaml"))


def expectation(text: str) -> tuple[str, str]:
    """What becomes of a recipe, and words that the sentence about it has."""
    line = next(line for line in text.splitlines() if line.startswith("# expect: "))
    kind, _, words = line.removeprefix("# expect: ").partition(": ")
    return kind, words


def check_sentence(error: MergeError, words: str) -> None:
    """One line that a person can read at once, with the expected words."""
    said = str(error)
    assert words in said
    assert "\n" not in said
    assert len(said) < 300


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_does_what_its_comment_says(
    path: Path, pico: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read and written back the same, planned with a note, or refused with a sentence."""
    text = path.read_text()
    kind, words = expectation(text)
    if kind == "refused":
        with pytest.raises(MergeError) as caught:
            Recipe.from_yaml(text)
        check_sentence(caught.value, words)
        return
    recipe = Recipe.from_yaml(text)
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.identity([]) == recipe.identity([])
    monkeypatch.chdir(pico["base"].parent)
    if kind == "refused by plan":
        with pytest.raises(MergeError) as caught:
            plan(recipe)
        check_sentence(caught.value, words)
    elif kind == "planned":
        sources = {name: open_source(name) for name in recipe.names()}
        decided = plan(recipe, sources)
        assert any(words in note.text for note in decided.notes), decided.notes
        assert all(note.level != "red" and "\n" not in note.text for note in decided.notes)
    else:
        assert kind == "loads"


def test_every_kind_of_end_is_there() -> None:
    """The corpus is no list of one thing: dozens are read, dozens refused."""
    kinds = [expectation(path.read_text())[0] for path in RECIPES]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert set(counts) == {"loads", "planned", "refused", "refused by plan"}
    assert min(counts.values()) >= 10


NUMBERS = st.floats(-2, 2) | st.integers(0, 3) | st.booleans()
SCALARS = NUMBERS | st.sampled_from(["0.5", "1e-3"])
LISTS = st.lists(SCALARS, min_size=1, max_size=4)
FILTERS = st.fixed_dictionaries(
    {"value": SCALARS | LISTS}, optional={"filter": st.sampled_from(["mlp", "*", "layers.1."])}
)
VALUES = SCALARS | LISTS | st.lists(FILTERS, min_size=1, max_size=3)
KEYS = st.sampled_from(["weight", "density", "t", "lambda", "normalize", "scale", "int8_mask"])
PARAMETERS = st.dictionaries(KEYS, VALUES, max_size=3)
NAMES = st.from_regex(
    r"[a-z]{1,6}/[A-Za-z0-9._-]{0,6}[a-z](@[a-z0-9]{1,5})?(\+[a-z]{1,4}/[a-z]{1,4})?",
    fullmatch=True,
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12)


@st.composite
def slices(draw: st.DrawFn) -> dict[str, Any]:
    """A slice of one to three sources, all of the same length."""
    length = draw(st.integers(1, 40))
    sources = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=3)):
        first = draw(st.integers(0, 60))
        source = {"model": name, "layer_range": [first, first + length]}
        sources.append(source | {"parameters": draw(PARAMETERS)})
    made: dict[str, Any] = {"sources": sources, "parameters": draw(PARAMETERS)}
    return made | draw(st.fixed_dictionaries({}, optional={"base_model": NAMES}))


MODELS = st.fixed_dictionaries({"model": NAMES}, optional={"parameters": PARAMETERS}) | NAMES
PADDED: dict[Any, Any] = {"source": st.sampled_from(["union", "base", "some/model"])}
MULTIPLES: dict[Any, Any] = {"pad_to_multiple_of": st.integers(1, 512)}
BODIES = st.one_of(
    st.fixed_dictionaries({"models": st.lists(MODELS, min_size=1, max_size=4)}),
    st.fixed_dictionaries({"slices": st.lists(slices(), min_size=1, max_size=4)}),
)
TOKENIZERS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"tokenizer_source": st.just("union") | NAMES}),
    st.fixed_dictionaries({"tokenizer": st.fixed_dictionaries({}, optional=PADDED | MULTIPLES)}),
)
REST = st.fixed_dictionaries(
    {"merge_method": st.sampled_from(["ties", "SLERP", "linear", "passthrough", "dare_ties"])},
    optional={
        "base_model": NAMES,
        "parameters": PARAMETERS,
        "dtype": st.sampled_from(DTYPES),
        "out_dtype": st.sampled_from(DTYPES),
        "chat_template": st.sampled_from(["auto", "chatml"]) | TEXTS,
        "random_seed": st.integers(0, 2**40),
        "variant": st.sampled_from([*variants("ties")]),
        "name": TEXTS,
    },
)


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(REST, BODIES, TOKENIZERS)
def test_any_recipe_survives_being_written(
    rest: dict[str, Any], body: dict[str, Any], tokenizer: dict[str, Any]
) -> None:
    """from_yaml(to_yaml()) is the same recipe, with the same identity and the same text."""
    recipe = Recipe.from_yaml(yaml.safe_dump(rest | body | tokenizer))
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.identity(["x"]) == recipe.identity(["x"])
    assert again.to_yaml() == recipe.to_yaml()
