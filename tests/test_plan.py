"""What is decided before bytes move: values tensor by tensor, notes, config, template, roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from merging import MergeError, plan
from merging.methods import methods
from merging.names import layer as number
from merging.opening import open_source
from merging.parameters import settings
from merging.plan import Plan, with_sources
from merging.recipe import Recipe
from tests.conftest import changed, recipe

Pico = dict[str, Path]
LAYERS = 5


def values(parameters: dict[str, Any], tensor: str, method: str = "slerp") -> dict[str, Any]:
    """What a tensor of a model with five layers gets from a recipe's parameters."""
    chosen = recipe(method, ["org/a", "org/b"], base_model="org/base", parameters=parameters)
    (piece,) = chosen.stacked()
    where = (number(tensor) or 0) / (LAYERS - 1)
    found = settings(chosen, methods()[method])
    return found.at(tensor, piece, piece.sources, [tensor] * 2, where)


def layer(number: int, rest: str = "mlp.up_proj.weight") -> str:
    return f"model.layers.{number}.{rest}"


def texts(decided: Plan, level: str) -> str:
    return "\n".join(note.text for note in decided.notes if note.level == level)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([0, 1], [0, 0.25, 0.5, 0.75, 1]),
        ([0, 1, 0], [0, 0.5, 1, 0.5, 0]),
        ([0.2, 0.6, 0.4, 0.0], [0.2, 0.5, 0.5, 0.3, 0.0]),
        ([0.3], [0.3] * 5),
        ([1, 0, 1, 0, 1], [1, 0, 1, 0, 1]),
    ],
)
def test_a_gradient_is_piecewise_linear(points: list[float], expected: list[float]) -> None:
    """Over idx / (layers - 1), whatever the number of points."""
    found = [values({"t": points}, layer(i))["t"] for i in range(LAYERS)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
)
def test_outside_the_layers_the_first_value_holds(tensor: str) -> None:
    """Embeddings, last norm and head take a gradient's first value, as with mergekit."""
    assert values({"t": [0.2, 0.9]}, tensor)["t"] == 0.2


def test_one_layer_takes_the_last_value(pico: Pico) -> None:
    """A slice of one layer is at its gradient's end, as in mergekit; embeddings at the start."""
    source = {"model": str(pico["a"]), "layer_range": [0, 1]}
    other = {"model": str(pico["c"]), "layer_range": [1, 2]}
    keys = {"base_model": str(pico["a"]), "parameters": {"t": [0.2, 0.9]}}
    text = {"merge_method": "slerp", "slices": [{"sources": [source, other]}]} | keys
    decided = plan(Recipe.from_yaml(yaml.safe_dump(text)))
    assert {number(s.name): s.values["t"] for s in decided.steps} == {0: 0.9, None: 0.2}


def test_switches_step_over_the_layers() -> None:
    """A list of true and false is not interpolated."""
    found = [values({"normalize": [True, False]}, layer(i), "ties")["normalize"] for i in (0, 4)]
    assert found == [True, False]


def test_the_first_filter_that_fits_wins() -> None:
    """Filters are parts of the tensor's name, tried in order; one without filter takes the rest,
    and a filter may hold a gradient.
    """
    t = [
        {"filter": "self_attn", "value": [0, 1]},
        {"filter": "q_proj", "value": 0.9},
        {"filter": "mlp", "value": 0.7},
        {"value": 0.5},
    ]
    assert values({"t": t}, layer(2, "self_attn.q_proj.weight"))["t"] == 0.5
    assert values({"t": t}, layer(4, "self_attn.q_proj.weight"))["t"] == 1
    assert values({"t": t}, layer(4))["t"] == 0.7
    assert values({"t": t}, "model.norm.weight")["t"] == 0.5
    star = [{"filter": "*", "value": 0.1}, {"filter": "mlp", "value": 0.9}]
    assert values({"t": star}, layer(0))["t"] == 0.1


def test_no_filter_that_fits_means_the_default() -> None:
    """A tensor that no filter names gets the method's default."""
    t = [{"filter": "mlp", "value": 0.9}]
    assert values({"t": t}, "lm_head.weight")["t"] == 0.5


def test_the_nearest_place_that_has_a_value_wins() -> None:
    """A model's own parameter before the common one; where its filters do not fit, the common."""
    own = {"weight": [{"filter": "mlp", "value": 3}], "density": 0.1}
    chosen = recipe(
        "ties", [("org/a", own), "org/b"], base_model="org/base",
        parameters={"weight": 2, "density": 0.4},
    )  # fmt: skip
    (piece,) = chosen.stacked()

    def asked(name: str) -> dict[str, Any]:
        return settings(chosen, methods()["ties"]).at(name, piece, piece.sources, [name] * 2)

    assert asked(layer(0))["weight"] == (3, 2)
    assert asked("lm_head.weight")["weight"] == (2, 2)
    assert asked("lm_head.weight")["density"] == (0.1, 0.4)


def test_silence_means_mergekits_defaults() -> None:
    """TIES without parameters: weight 1, density 1, lambda 1, normalised."""
    assert values({}, layer(0), "ties") == {
        "weight": (1, 1), "density": (1, 1), "lambda": 1, "normalize": True, "rescale": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "t", [[], [{"filter": "mlp"}], [{"value": 1, "filtre": "x"}], [{"value": 1}, 2], [[0, 1]]]
)
def test_lists_that_are_neither(t: Any) -> None:
    """Neither gradient nor filters: refused, naming the parameter."""
    with pytest.raises(MergeError, match="`t"):
        values({"t": t}, layer(0))


def test_a_plan_has_a_step_a_tensor(pico: Pico) -> None:
    """Every tensor once, by layers, with its values, shape and dtype."""
    t = {"t": [0, 1]}
    decided = plan(recipe("slerp", [pico["a"], pico["c"]], parameters=t))
    source = open_source(str(pico["a"]))
    assert {s.name: (s.shape, s.dtype) for s in decided.steps} == {
        n: (i.shape, i.dtype) for n, i in source.tensors.items()
    }
    assert all(s.values["t"] == (number(s.name) or 0) for s in decided.steps)
    first, *_, norm = (s.name for s in decided.steps)
    assert (first, norm) == ("model.embed_tokens.weight", "model.norm.weight")
    assert decided.size == sum(i.size * 2 for i in source.tensors.values())
    assert decided.missing == 0


def test_the_base_is_where_the_walk_begins(pico: Pico) -> None:
    """SLERP with a base that is listed puts it first, whatever the order: t = 0 is the base."""
    keys = {"base_model": pico["c"], "parameters": {"t": 0.1}}
    decided = plan(recipe("slerp", [pico["a"], pico["c"]], **keys))
    assert [s.name for s in decided.sources] == [str(pico["c"]), str(pico["a"])]
    assert decided.columns == (str(pico["a"]), str(pico["c"]))


def test_a_base_without_use_is_told(pico: Pico) -> None:
    """Linear and SLERP over other models leave a base out, and say so."""
    for method in ("linear", "slerp"):
        decided = plan(recipe(method, [pico["a"], pico["c"]], base_model=pico["base"]))
        assert "uses no base" in texts(decided, "amber")
        assert len(decided.sources) == 2


def test_a_listed_base_has_no_delta(pico: Pico) -> None:
    """A base among the models is the base, not a third model."""
    decided = plan(recipe("ties", [pico["base"], pico["a"], pico["c"]], base_model=pico["base"]))
    assert [s.name for s in decided.sources] == [str(pico[n]) for n in ("a", "c", "base")]
    assert all(len(s.values["weight"]) == 2 for s in decided.steps)


def test_a_grown_vocabulary_is_told(pico: Pico) -> None:
    """Unequal vocabularies become a union, with a note that names owner and tokens."""
    decided = plan(recipe("ties", [pico["a"], pico["b"]], base_model=pico["base"]))
    note = texts(decided, "amber")
    assert f"{pico['b']} has 2 tokens that {pico['base']} lacks: `<|im_start|>`" in note
    assert "66 rows" in note
    assert decided.config["vocab_size"] == 66
    assert {s.name: s.shape[0] for s in decided.steps if s.by_token} == {
        "model.embed_tokens.weight": 66, "lm_head.weight": 66,
    }  # fmt: skip


@pytest.mark.parametrize(("source", "rows"), [("base", 64), ("union", 66), ("b", 66), ("a", 64)])
def test_the_tokenizer_can_be_chosen(source: str, rows: int, pico: Pico) -> None:
    """union, base, or one of the models; what is left out is told."""
    named = str(pico[source]) if source in ("a", "b") else source
    keys = {"base_model": pico["base"], "tokenizer_source": named}
    decided = plan(recipe("ties", [pico["a"], pico["b"]], **keys))
    assert decided.config["vocab_size"] == rows
    assert ("2 tokens" in texts(decided, "amber")) == (named != str(pico["b"]))


def test_without_tokenizers_equal_rows_pair_by_number(pico: Pico, tmp_path: Path) -> None:
    """No tokenizer.json: equal sizes are a note, unequal ones an error with a remedy."""
    bare = {n: changed(pico[n], tmp_path / n) for n in ("a", "b", "c")}
    for folder in bare.values():
        (folder / "tokenizer.json").unlink()
    decided = plan(recipe("linear", [bare["a"], bare["c"]]))
    assert "rows pair by number" in texts(decided, "amber")
    with pytest.raises(MergeError, match="fast tokenizer"):
        plan(recipe("linear", [bare["a"], bare["b"]]))


def test_the_output_dtype(pico: Pico) -> None:
    """out_dtype before dtype before the parents' own; the config says the same."""
    cases = [
        ({}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "float16", "out_dtype": "float32"}, "float32"),
    ]
    for keys, expected in cases:
        decided = plan(recipe("linear", [pico["a"], pico["c"]], **keys))
        assert {str(s.dtype) for s in decided.steps} == {f"torch.{expected}"}
        assert decided.config["dtype"] == expected


def test_the_chat_template(pico: Pico, tmp_path: Path) -> None:
    """The donor's, else the first parent's with a note, else none; a named one before all."""
    pair = [changed(pico[n], tmp_path / n) for n in ("a", "c")]
    assert "No parent has a chat template" in texts(plan(recipe("linear", pair)), "amber")
    (pair[1] / "chat_template.jinja").write_text("{{ messages }} of c")
    decided = plan(recipe("linear", pair))
    assert decided.template == "{{ messages }} of c"
    assert f"The chat template is {pair[1]}'s" in texts(decided, "amber")
    assert "<|im_start|>" in (plan(recipe("linear", pair, chat_template="chatml")).template or "")
    assert plan(recipe("linear", pair, chat_template="{{ x }}")).template == "{{ x }}"


def test_sources_can_be_handed_in(pico: Pico) -> None:
    """A plan over known sources looks for no others, and can change them for fetched ones."""
    known = {str(pico[n]): open_source(str(pico[n])) for n in ("a", "c")}

    def never(name: str) -> Any:
        pytest.fail(f"looked for {name}")

    decided = plan(recipe("linear", [pico["a"], pico["c"]]), known, find=never)
    again = with_sources(decided, [open_source(s.name) for s in decided.sources])
    assert again.donor == decided.donor and again.identity == decided.identity


def test_only_lists_about_layers_follow_slices(pico: Pico, tmp_path: Path) -> None:
    """A list with an entry a layer is stacked as layers are; another of the same length is not."""
    kinds = {"layer_types": ["full_attention", "sliding_attention"], "eos_token_id": [2, 3]}
    folder = str(changed(pico["a"], tmp_path / "a", config=kinds))
    pieces = [{"sources": [{"model": folder, "layer_range": r}]} for r in ([0, 2], [1, 2])]
    decided = plan(
        Recipe.from_yaml(yaml.safe_dump({"merge_method": "passthrough", "slices": pieces}))
    )
    assert decided.config["num_hidden_layers"] == 3
    assert decided.config["layer_types"] == [*kinds["layer_types"], "sliding_attention"]
    assert decided.config["eos_token_id"] == [2, 3]
