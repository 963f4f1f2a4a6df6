"""The grammar: what is read, written back, and taken for the same merge."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import MergeError, Recipe
from merging.recipe import ModelRef

TEXT = """
merge_method: TIES
base_model: org/base
models:
- org/a
- model: org/b@main
  parameters: {weight: 0.3, density: [0.2, 0.8]}
- model: {path: org/c}
parameters:
  lambda: 1.2
  normalize: false
dtype: float32
out_dtype: bfloat16
tokenizer_source: union
chat_template: auto
random_seed: 42
name: mine
"""

NUMBERS = st.floats(-2, 2) | st.integers(0, 3) | st.booleans()
VALUES = NUMBERS | st.lists(NUMBERS, min_size=1, max_size=4)
NAMES = st.from_regex(r"[a-z]{1,8}/[A-Za-z0-9._-]{0,8}[a-z]", fullmatch=True)
PARAMETERS = st.dictionaries(st.sampled_from(["weight", "density", "t", "lambda"]), VALUES)


def test_everything_is_read() -> None:
    """Each key of mergekit's grammar lands in its field; methods are lower case."""
    recipe = Recipe.from_yaml(TEXT)
    assert recipe.merge_method == "ties" and recipe.base_model == "org/base"
    assert [m.model for m in recipe.models] == ["org/a", "org/b@main", "org/c"]
    assert recipe.models[1].parameters == {"weight": 0.3, "density": [0.2, 0.8]}
    assert recipe.parameters == {"lambda": 1.2, "normalize": False}
    assert (recipe.dtype, recipe.out_dtype) == ("float32", "bfloat16")
    assert (recipe.tokenizer_source, recipe.chat_template) == ("union", "auto")
    assert (recipe.random_seed, recipe.name, recipe.variant) == (42, "mine", "mergekit")
    assert recipe.names() == ("org/a", "org/b@main", "org/c", "org/base")


def test_structure_alone_is_checked() -> None:
    """Any method and any model name is taken here; the plan is where they are looked up."""
    recipe = Recipe.from_yaml("merge_method: magic\nmodels: [no/such, ./folder]")
    assert recipe.merge_method == "magic" and recipe.names() == ("no/such", "./folder")


@settings(derandomize=True, deadline=None, max_examples=40, database=None)
@given(
    st.lists(st.tuples(NAMES, PARAMETERS), min_size=1, max_size=3),
    PARAMETERS,
    st.none() | NAMES,
    st.integers(0, 2**40),
)
def test_written_and_read_again_it_is_equal(
    models: Any, parameters: Any, base: str | None, seed: int
) -> None:
    """from_yaml(to_yaml()) is the same recipe with the same identity."""
    raw: dict[str, Any] = {"merge_method": "ties", "parameters": parameters, "random_seed": seed}
    raw["models"] = [{"model": name, "parameters": own} for name, own in models]
    raw |= {"base_model": base} if base else {}
    recipe = Recipe.from_yaml(yaml.safe_dump(raw))
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe and again.identity(["x"]) == recipe.identity(["x"])


def test_the_default_is_not_written() -> None:
    """A short recipe stays short."""
    text = "merge_method: linear\nmodels:\n- model: org/a\n- model: org/b\n"
    assert Recipe.from_yaml(text).to_yaml() == text


def test_identity_sees_what_matters() -> None:
    """Order and spelling of keys and stamps and the label do not matter; models' order does."""
    recipe = Recipe.from_yaml(TEXT)
    sorted_keys = Recipe.from_yaml(yaml.safe_dump(yaml.safe_load(TEXT), sort_keys=True))
    assert sorted_keys.identity(["b", "a"]) == recipe.identity(["a", "b"])
    assert Recipe.from_yaml(TEXT + "#").identity(["a"]) == recipe.identity(["a"])
    assert recipe.identity(["a"]) != recipe.identity(["b"])
    assert recipe.seeded(1).identity(["a"]) != recipe.identity(["a"])
    swapped = Recipe.from_yaml("merge_method: slerp\nmodels: [org/a, org/b]")
    other = Recipe.from_yaml("merge_method: slerp\nmodels: [org/b, org/a]")
    assert swapped.identity([]) != other.identity([])


def test_renaming_pins_every_place() -> None:
    """Models, base and tokenizer source change names together; others stay."""
    text = TEXT.replace("union", "org/a")
    pinned = Recipe.from_yaml(text).renamed({"org/a": "org/a@123", "org/base": "org/base@456"})
    assert pinned.names() == ("org/a@123", "org/b@main", "org/c", "org/base@456")
    assert pinned.tokenizer_source == "org/a@123"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None)),
        (" org/name@v1 ", ("org/name", "v1", None)),
        ("org/name@v1+my/lora", ("org/name", "v1", "my/lora")),
        ("./folder", ("./folder", None, None)),
    ],
)
def test_a_models_name(text: str, parts: tuple[str, str | None, str | None]) -> None:
    """`path[@revision][+adapter]`, and back."""
    ref = ModelRef.parse(text)
    assert (ref.path, ref.revision, ref.adapter) == parts
    assert str(ref) == text.strip()


@pytest.mark.parametrize("text", ["", "@main", "a@b@c", "a+b+c", "org/name@", "org/name+", "+x"])
def test_no_models_name(text: str) -> None:
    """What cannot be parsed is refused with the forms that can."""
    with pytest.raises(MergeError, match=r"is not a model's name: write `org/name`"):
        ModelRef.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: [a]", "no `merge_method`"),
        ("merge_method: ties", "no `models`"),
        ("merge_method: ties\nmodels: {a: b}", "no `models`"),
        ("merge_method: ties\nmodels: [3]", "Each entry of `models`"),
        ("merge_method: ties\nmodels: [{model: 3}]", "`model` must be a model's name"),
        ("merge_method: ties\nmodels: [a]\nparameters: 3", "not int"),
        ("merge_method: ties\nmodels: [a]\nparameters: {t: {a: 1}}", "`t` in the parameters"),
        ("merge_method: ties\nmodels: [a]\nparameters: {t: }", "`t` in the parameters"),
        ("merge_method: ties\nmodels: [a]\nrandom_seed: 1.5", "whole number"),
        ("merge_method: ties\nmodels: [a]\nrandom_seed: true", "whole number"),
        ("merge_method: ties\nmodels: [a]\nname: [b]", "`name` must be text"),
        ("merge_method: ties\nmodels: [a]\nvariant: [paper]", "`variant` must be text"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: &a [*a]", "YAML"),
        ("? [a]\n: b", "YAML"),
        ("a: \x00", "not valid YAML"),
        ("n: " + "9" * 5000, "YAML cannot read"),
    ],
)
def test_what_is_no_recipe(text: str, says: str) -> None:
    """Each is one MergeError that names the place; nothing else ever comes out."""
    with pytest.raises(MergeError) as caught:
        Recipe.from_yaml(text)
    assert says in str(caught.value)


def test_merge_keys_of_yaml_work() -> None:
    """`<<` brings in another mapping, as with mergekit."""
    text = (
        "merge_method: ties\nmodels:\n- model: a\n  parameters: &p {weight: 0.5}\n"
        "- model: b\n  parameters: {<<: *p, density: 0.1}\n"
    )
    assert Recipe.from_yaml(text).models[1].parameters == {"weight": 0.5, "density": 0.1}


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"#,\n\t ?%@~01.e<"), max_size=60) | st.text())
def test_any_text_is_a_recipe_or_a_merge_error(text: str) -> None:
    """No text, however odd, gets past as another exception."""
    try:
        Recipe.from_yaml(text)
    except MergeError as error:
        assert str(error)
