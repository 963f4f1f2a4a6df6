"""A real model's columns say what `generate` says, in float32 and in bf16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from merging.chat import Question, Reply, answer
from merging.loading import Loaded, load_parent
from merging.opening import open_folder
from merging.reading import Pasts
from tests.slow.greedy import Greedy, agrees, greedy

pytestmark = pytest.mark.slow

TOKENS = 10
Talk = tuple[Mapping[str, str], ...]


def asked(words: str) -> Talk:
    return ({"role": "user", "content": words},)


RIVER = "What is the capital of France, and which river does it lie on?"
TALKS: dict[str, Talk] = {
    "original": asked("Where is Paris?"),
    "a": asked(RIVER),
    "b": asked(f"I would like to know something about a country in Europe. {RIVER}"),
}
"""What each column is asked: prompts of their own lengths."""


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def trio(request: pytest.FixtureRequest, variants: dict[str, Path]) -> dict[str, Loaded]:
    """The original and its two fine-tunes in one type."""
    found = {}
    for name, folder in variants.items():
        loaded = load_parent(open_folder(folder, name, "stamp"), "cpu")
        found[name] = Loaded.of(loaded.model.to(request.param), loaded.tokenizer)
    return found


def said(loaded: Loaded, talk: Talk) -> Greedy:
    return greedy(loaded.model, loaded.tokenizer, talk, TOKENS)


@pytest.fixture(scope="module")
def wanted(trio: dict[str, Loaded]) -> dict[str, Greedy]:
    """Each column's answer by `generate`; half of all that is said is beyond doubt."""
    found = {name: said(loaded, TALKS[name]) for name, loaded in trio.items()}
    assert sum(each.sure for each in found.values()) >= len(found) * TOKENS / 2
    return found


def ask(trio: Mapping[str, Loaded], talks: Mapping[str, Talk], pasts: Pasts | None = None) -> (
    dict[str, Reply]
):  # fmt: skip
    question = Question({name: talks[name] for name in trio}, TOKENS)
    return {reply.column: reply for reply in answer(question, trio, pasts)}


def ends(loaded: Loaded) -> Sequence[int]:
    listed = loaded.model.generation_config.eos_token_id
    return listed if isinstance(listed, list) else [listed]


def test_turns_of_a_conversation(trio: dict[str, Loaded], wanted: dict[str, Greedy]) -> None:
    """Prompts of different lengths at once, then a follow-up to what was read and kept: both as
    from a fresh full prompt."""
    pasts = Pasts(10**9)
    replies = ask(trio, TALKS, pasts)
    for name, loaded in trio.items():
        agrees(replies[name], wanted[name], loaded.tokenizer, ends(loaded))
    talks = {
        name: (*TALKS[name], {"role": "assistant", "content": reply.text}, *asked("And then?"))
        for name, reply in replies.items()
    }
    again = ask(trio, talks, pasts)
    for name, loaded in trio.items():
        agrees(again[name], said(loaded, talks[name]), loaded.tokenizer, ends(loaded))


def test_alone_as_in_company(trio: dict[str, Loaded], wanted: dict[str, Greedy]) -> None:
    """A column's answer depends on no other column."""
    alone = ask({"b": trio["b"]}, TALKS)["b"]
    agrees(alone, wanted["b"], trio["b"].tokenizer, ends(trio["b"]))


def test_a_list_of_stop_tokens(
    trio: dict[str, Loaded], wanted: dict[str, Greedy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any token of a list ends an answer and is no part of it."""
    stops = [*ends(trio["a"]), *(each.tokens[:6][-1] for each in wanted.values())]
    for loaded in trio.values():
        settings = GenerationConfig(eos_token_id=stops)
        monkeypatch.setattr(loaded.model, "generation_config", settings)
    replies = ask(trio, TALKS)
    for name, loaded in trio.items():
        agrees(replies[name], wanted[name].until(stops), loaded.tokenizer, stops)
