"""Merges of a real model, SmolLM2-135M: in files, in memory, in conversation, and their memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from merging import Recipe, gpu, merge, plan
from merging.chat import Question, Reply
from merging.opening import open_source
from merging.sinks import Live
from tests.conftest import loaded
from tests.slow import memory
from tests.slow.greedy import Greedy, agrees, greedy

pytestmark = pytest.mark.slow

METHODS = ("linear", "slerp", "ties")
MESSAGES = [{"role": "user", "content": "Name the capital of France."}]
TOKENS = 16


def answered(folder: Path) -> tuple[Greedy, Any]:
    """What `generate` answers greedily in bf16, and the tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return greedy(model, tokenizer, MESSAGES, TOKENS), tokenizer


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_in_several_files_loads_whole(merges: dict[str, Path], method: str) -> None:
    """transformers finds every weight of the shards and no other, and the head stays tied."""
    assert len(list(merges[method].glob("model-*-of-*.safetensors"))) > 1
    model, report = AutoModelForCausalLM.from_pretrained(
        merges[method], output_loading_info=True, dtype="auto"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.tie_word_embeddings and model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_still_speaks(merges: dict[str, Path], method: str) -> None:
    """The merged model says something in words, with its own tokenizer and chat template."""
    said, tokenizer = answered(merges[method])
    text = tokenizer.decode(said.tokens, skip_special_tokens=True)
    assert sum(c.isalpha() for c in text) > len(text) / 2, text


def test_linear_is_the_mean_of_all_weights(
    variants: dict[str, Path], merges: dict[str, Path]
) -> None:
    """Every element of every shard is the rounded mean of the same element of the parents."""
    a, b = loaded(variants["a"]), loaded(variants["b"])
    found = loaded(merges["linear"])
    assert found.keys() == a.keys()
    for name, values in found.items():
        mean = (a[name].float() + b[name].float()) / 2
        assert torch.equal(values, mean.bfloat16()), name


@pytest.mark.parametrize("method", METHODS)
def test_memory_and_files_hold_the_same_weights(
    recipes: dict[str, Path], merges: dict[str, Path], method: str
) -> None:
    """A merge into a live model gives the bytes that the folder has, and ties its head too."""
    live = Live()
    for _ in merge(plan(Recipe.from_yaml(recipes[method].read_text())), live):
        pass
    weights = live.model.state_dict()
    assert live.model.lm_head.weight is live.model.model.embed_tokens.weight
    for name, values in loaded(merges[method]).items():
        assert torch.equal(weights[name], values), name


@pytest.fixture(scope="module")
def conversation(variants: dict[str, Path], recipes: dict[str, Path]) -> list[Reply]:
    """All replies, as they come, of the original, a parent and their merge, asked at once."""
    job = gpu.merge_job(plan(Recipe.from_yaml(recipes["slerp"].read_text())))
    asked = {name: gpu.place(open_source(str(variants[name]))) for name in ("original", "a")}
    columns = {column: place.name for column, place in asked.items()}
    question = Question(dict.fromkeys([*columns, gpu.MERGED], MESSAGES), max_new_tokens=TOKENS)
    job = replace(job, places=tuple(asked.values()), columns=columns, questions=(question,))
    return [event for event in gpu.run(job) if isinstance(event, Reply)]


def last(replies: list[Reply], column: str) -> Reply:
    return [reply for reply in replies if reply.column == column][-1]


def test_the_original_knows_paris(conversation: list[Reply]) -> None:
    """A real answer comes out of the chat, and ends by itself."""
    reply = last(conversation, "original")
    assert "Paris" in reply.text
    assert reply.ended == "end of text"


def test_all_columns_stream_at_once(conversation: list[Reply]) -> None:
    """Every column has spoken before any has ended, and only ever says more."""
    end = next(i for i, reply in enumerate(conversation) if reply.ended)
    assert {reply.column for reply in conversation[:end]} == {"original", "a", gpu.MERGED}
    for column in ("original", "a", gpu.MERGED):
        own = [reply for reply in conversation if reply.column == column]
        assert len(own) > 2 and own[-1].ended
        assert all(_grows(own))


def _grows(replies: list[Reply]) -> Iterator[bool]:
    for before, after in pairwise(replies):
        yield after.text.startswith(before.text) and after.tokens >= before.tokens


@pytest.mark.parametrize("column", ["original", "a", gpu.MERGED])
def test_the_chat_says_what_generate_says(
    conversation: list[Reply], variants: dict[str, Path], merges: dict[str, Path], column: str
) -> None:
    """Greedy answers in company are those of `generate` alone in bf16, the merge's included."""
    said, tokenizer = answered({**variants, gpu.MERGED: merges["slerp"]}[column])
    assert said.sure >= TOKENS // 4
    agrees(last(conversation, column), said, tokenizer, [tokenizer.eos_token_id])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts pages as Linux does")
@pytest.mark.parametrize("method", METHODS)
def test_a_merge_needs_little_memory(recipes: dict[str, Path], tmp_path: Path, method: str) -> None:
    """A merge into a folder stays 600 MB within what the process needs anyway."""
    seen = memory.merge([recipes[method], tmp_path / "merged"])
    assert seen.peak < 600e6
