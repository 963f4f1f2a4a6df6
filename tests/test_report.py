"""What the check says before a byte of weights moves: who may publish what, and what is refused.

Notes on vocabularies, bases and unused keys are in test_plan, on costs in test_costs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from merging import MergeError, Recipe, costs, plan
from merging.configs import is_known
from merging.notes import Note
from merging.opening import APP, open_source
from merging.plan import Plan
from merging.sources import Checkpoint
from tests.conftest import INDEX, WEIGHTS, changed, loaded, recipe
from tests.hub import LocalHub
from tests.hub.fixtures import hub

__all__ = ["hub"]  # a fixture

Pico = dict[str, Path]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def opened(folder: Path, **facts: Any) -> Checkpoint:
    """A model of the Hub as far as a plan can tell: facts are not in its folder."""
    source = open_source(str(folder))
    assert isinstance(source, Checkpoint)
    return replace(source, **facts)


def decided(pico: Pico, *facts: Mapping[str, Any]) -> Plan:
    """`a` and `c` with these facts, to which "org/…" is added as a name."""
    names = ["org/first", "org/second"]
    sources = {
        name: opened(pico[short], **({"name": f"{name}@{short * 40}"} | dict(more)))
        for name, short, more in zip(names, "ac", facts, strict=True)
    }
    return plan(recipe("linear", names), sources)


def about(found: Plan, words: str) -> Note:
    """The one note with these words."""
    (note,) = [note for note in found.notes if words in note.text]
    assert len(note.text) < 300 and "\n" not in note.text
    return note


# Licences and access


@pytest.mark.parametrize(
    ("first", "second", "level", "words"),
    [
        ("mit", "mit", "green", "Licence of all parents: mit"),
        ("mit", "apache-2.0", "green", "Licences: mit (org/first); apache-2.0 (org/second)"),
        ("llama3.2", "llama3.2", "amber", "Licence of all parents: llama3.2. Read the terms of"),
        ("mit", "gemma", "amber", "(org/second). Read the terms of `gemma` before you publish"),
        ("mit", "other", "amber", "Read the terms of `other`"),
        ("mit", "cc-by-nc-4.0", "amber", "`cc-by-nc-4.0` allows no commercial use"),
        ("mit", "cc-by-nc-nd-4.0", "amber", "lets nobody publish changed versions"),
        ("mit", "gpl-3.0", "amber", "`gpl-3.0` may ask that the merge be under it too"),
        ("mit", "cc-by-sa-4.0", "amber", "may ask that the merge be under it too"),
        ("mit", "cc-by-4.0", "green", "cc-by-4.0 (org/second)"),
        ("mit / gemma", "mit", "amber", "Read the terms of `gemma`"),
        ("mit", None, "amber", "(org/first). org/second states none. Ask whoever made them"),
        (None, None, "amber", "No parent states a licence. Ask whoever made them"),
    ],
)
def test_licences(
    first: str | None, second: str | None, level: str, words: str, pico: Pico
) -> None:
    """One note has every parent's licence as found, and says what to watch when publishing."""
    note = about(decided(pico, {"license": first}, {"license": second}), "icence")
    assert note.level == level and words in note.text


def test_gated_parents_are_named(pico: Pico) -> None:
    """Who may see the merge, and what may be done with it; nothing is said where all is open."""
    open_ = decided(pico, {}, {})
    assert "not open to all" not in "".join(n.text for n in open_.notes)
    note = about(decided(pico, {}, {"gated": True}), "not open to all")
    assert note.level == "amber" and note.text.startswith("org/second is not")
    assert "pushed, not downloaded" in note.text


def test_two_commits_of_a_model_are_told_apart(pico: Pico) -> None:
    """Notes leave commits out, unless they are what differs."""
    both = [{"name": f"org/m@{n * 40}", "gated": True} for n in "ac"]
    assert about(decided(pico, *both), "not open").text.startswith(
        "org/m@aaaaaaa and org/m@ccccccc"
    )


def test_the_demo_is_green_where_nothing_is_wrong() -> None:
    """The trio's check fits a projector: one amber line, on the added tokens."""
    found = plan(Recipe.from_yaml((APP / "assets/recipes/01-demo-ties.yaml").read_text()))
    notes = [*found.notes, *costs.notes(costs.costs(found, room=10**10, device="cpu"))]
    assert [note.level for note in notes] == ["green", "amber", "green", "green", "green"]
    assert all(len(note.text) < 130 for note in notes)
    assert about(found, "icence").text == "Licence of all parents: apache-2.0"


# What differs


def test_who_ties_and_who_does_not(pico: Pico, tmp_path: Path) -> None:
    """The note names both sides; where all tie, the first line says so."""
    ties: dict[str, Any] = {
        "tensors": {"lm_head.weight": None}, "config": {"tie_word_embeddings": True},
    }  # fmt: skip
    tied = [changed(pico[n], tmp_path / n, **ties) for n in ("a", "c")]
    note = about(plan(recipe("linear", [tied[0], pico["c"]])), "lm_head")
    assert note.level == "amber"
    assert note.text.startswith(f"{pico['c']} has a `lm_head.weight`, and {tied[0]} ties it")
    assert "embeddings tied" in about(plan(recipe("linear", tied)), "Same architecture").text


def test_types_that_differ(pico: Pico, tmp_path: Path) -> None:
    """Each type with its models, and what comes out; one type is a word of the first line."""
    wide = changed(
        pico["c"], tmp_path / "c",
        tensors={k: v.float() for k, v in load_file(pico["c"] / WEIGHTS).items()},
    )  # fmt: skip
    note = about(plan(recipe("linear", [pico["a"], wide])), "differ in type")
    assert note.level == "amber" and f"bfloat16 in {pico['a']}; float32 in {wide}" in note.text
    assert "merged model is in float32" in note.text
    same = plan(recipe("linear", [pico["a"], pico["c"]]))
    assert "bfloat16" in about(same, "Same architecture").text
    assert "differ in type" not in "".join(n.text for n in same.notes)


@pytest.mark.parametrize(
    ("templates", "level", "words"),
    [
        (("{{ x }}", "{{ x }}\n"), "green", "Same chat template"),
        (("{{ x }}", "{{ y }}"), "amber", "{c} answers by another template than the merged model"),
        (("{{ x }}", None), "green", "{c} has none, and is asked plainly"),
        ((None, "{{ y }}"), "amber", "The chat template is {c}'s: {a} has none"),
        ((None, None), "amber", "No parent has a chat template"),
    ],
)
def test_templates(
    templates: tuple[str | None, ...], level: str, words: str, pico: Pico, tmp_path: Path
) -> None:
    """Whose template the merged model has, who has another, and who has none."""
    folders = {n: changed(pico[n], tmp_path / n) for n in "ac"}
    for folder, text in zip(folders.values(), templates, strict=True):
        if text:
            (folder / "chat_template.jinja").write_text(text)
    note = about(plan(recipe("linear", folders.values())), "template")
    assert note.level == level and words.format(**folders) in note.text


# Refused


def test_code_of_its_own_is_refused(pico: Pico, tmp_path: Path) -> None:
    """Where transformers lacks the class; where it has it, the code is not needed, nor written."""
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_new.New"}}
    known = [changed(pico[n], tmp_path / f"{n}-known", config=code) for n in "ac"]
    assert "auto_map" not in plan(recipe("linear", known)).config
    other = code | {"model_type": "brand-new"}
    new = [changed(pico[n], tmp_path / f"{n}-new", config=other) for n in "ac"]
    with pytest.raises(MergeError, match=r"needs code of its own .*not run here: choose"):
        plan(recipe("linear", new))


def test_a_class_that_nobody_knows_is_told(pico: Pico, tmp_path: Path) -> None:
    """It can be merged all the same; whether it loads is another matter."""
    new = [changed(pico[n], tmp_path / n, config={"model_type": "brand-new"}) for n in "ac"]
    assert about(plan(recipe("linear", new)), "`brand-new`").level == "amber"


def test_every_class_that_transformers_brings_is_known(pico: Pico) -> None:
    """Also those without a folder of their own, as gemma3_text."""
    source = opened(pico["a"])
    kinds = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not name.endswith("Model")]
    assert len(kinds) > 100
    assert [k for k in kinds if not is_known(replace(source, config={"model_type": k}))] == []
    for odd in ("brand-new", "", "..", "../models/llama", None, 3):
        assert is_known(replace(source, config={"model_type": odd})) is False


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 3), ("num_hidden_layers", 1), ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "2"), ("num_hidden_layers", True), ("hidden_size", 64),
        ("hidden_size", 10**12), ("hidden_size", 32.0), ("vocab_size", 65), ("vocab_size", 0),
        ("num_attention_heads", 10**6), ("head_dim", 10**9), ("intermediate_size", -1),
    ],
)  # fmt: skip
def test_a_config_that_lies_is_refused(key: str, value: Any, pico: Pico, tmp_path: Path) -> None:
    """Numbers that the headers do not bear out are named, before anything is built of them."""
    folder = changed(pico["a"], tmp_path / "a", config={key: value})
    with pytest.raises(MergeError, match=rf"`{key}` is {value} in its config.json, .*choose"):
        plan(recipe("linear", [folder, pico["c"]]))


def test_a_config_may_say_less_than_the_headers(pico: Pico, tmp_path: Path) -> None:
    """Rows beyond the tokens, and layers that predict further tokens, are no contradiction."""
    extra = {"model.layers.2.eh_proj.weight": torch.zeros(4, 4).bfloat16()}
    pads = {"vocab_size": 60, "num_nextn_predict_layers": 1}
    folders = [changed(pico[n], tmp_path / n, tensors=extra, config=pads) for n in "ac"]
    assert plan(recipe("linear", folders)).steps


# Index and files


def sharded(folder: Path, to: Path) -> dict[str, str]:
    """A copy in two files; returns the index's map."""
    shutil.copytree(folder, to)
    tensors = load_file(to / WEIGHTS)
    (to / WEIGHTS).unlink()
    where = {name: FIRST if ".0." in name else SECOND for name in tensors}
    for file in (FIRST, SECOND):
        save_file({n: t for n, t in tensors.items() if where[n] == file}, to / file)
    (to / INDEX).write_text(json.dumps({"weight_map": where}))
    return where


NORM, HEAD = "model.layers.0.input_layernorm.weight", "lm_head.weight"
FAULTS: dict[str, tuple[Callable[[dict[str, str]], Any], str]] = {
    "nowhere": (lambda m: m.update(ghost=FIRST), f"`ghost` is not in {FIRST}, where its index"),
    "elsewhere": (lambda m: m.update({NORM: SECOND}), f"`{NORM}` is "),
    "untold": (lambda m: m.pop(NORM), f"`{NORM}` is in {FIRST} and its index does not say so"),
    "untold head": (lambda m: m.pop(HEAD), f"`{HEAD}` is in {SECOND} and its index does not"),
    "no name": (lambda m: m.update(ghost=3), "is missing"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_an_index_that_disagrees_is_refused(fault: str, pico: Pico, tmp_path: Path) -> None:
    """A tensor named and absent, in another file than named, or not named at all."""
    where = sharded(pico["a"], tmp_path / "a")
    change, words = FAULTS[fault]
    change(where)
    (tmp_path / "a" / INDEX).write_text(json.dumps({"weight_map": where}))
    with pytest.raises(MergeError) as caught:
        open_source(str(tmp_path / "a"))
    assert words in str(caught.value)


def test_a_tensor_in_two_files_is_refused(pico: Pico, tmp_path: Path) -> None:
    """Nobody could say which of the two is meant."""
    sharded(pico["a"], tmp_path / "a")
    twice = load_file(tmp_path / "a" / SECOND) | {NORM: torch.zeros(32).bfloat16()}
    save_file(twice, tmp_path / "a" / SECOND)
    with pytest.raises(MergeError, match=f"`{NORM}` is in {SECOND} and its index does not say so"):
        open_source(str(tmp_path / "a"))


def test_an_index_may_name_a_tied_head(pico: Pico, tmp_path: Path) -> None:
    """Conversions leave tied heads and buffers out, and the index as it was."""
    where = sharded(changed(pico["a"], tmp_path / "x", tensors={HEAD: None}), tmp_path / "a")
    where |= {HEAD: SECOND, "model.layers.0.self_attn.rotary_emb.inv_freq": FIRST}
    (tmp_path / "a" / INDEX).write_text(json.dumps({"weight_map": where}))
    assert open_source(str(tmp_path / "a")).tensors.keys() == loaded(tmp_path / "a").keys()


def test_an_index_of_the_hub_is_compared_too(hub: LocalHub, pico: Pico, tmp_path: Path) -> None:
    """By headers alone, before any weights are fetched."""
    where = sharded(pico["a"], tmp_path / "a")
    hub.add("org/good", tmp_path / "a")
    assert open_source("org/good").tensors == open_source(str(tmp_path / "a")).tensors
    where["ghost"] = FIRST
    (tmp_path / "a" / INDEX).write_text(json.dumps({"weight_map": where}))
    hub.add("org/bad", tmp_path / "a")
    with pytest.raises(MergeError, match=r"org/bad@.*`ghost` is not in"):
        open_source("org/bad")
