"""Columns say what transformers' own `generate` says: families, stop tokens, samples, and Stop."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from merging import chat
from merging.chat import Question, Reply, answer
from merging.conversation import tokens_of
from merging.loading import Loaded
from tests.conftest import WORDS
from tests.decoders import build, tuned
from tests.test_chat import no_more_than

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = {"max_position_embeddings": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LONG,
    "mistral": LONG | {"sliding_window": 16},
    "qwen2": LONG,
    "gemma": LONG,
    "gpt2": {"n_positions": 256},
}
LENGTHS = {"base": 1, "a": 9, "b": 30}
"""Words that each column is asked: prompts of their own lengths."""
TOKENS = 24


def words() -> PreTrainedTokenizerFast:
    """A word a token, none of them special: a text says which tokens it is of."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def asked(count: int) -> Sequence[Mapping[str, str]]:
    return ({"role": "user", "content": " ".join(WORDS[3 + n] for n in range(count))},)


@pytest.fixture(scope="module", params=list(FAMILIES))
def trio(request: pytest.FixtureRequest) -> dict[str, Loaded]:
    """A base and two fine-tunes of it, in float32."""
    base = build(request.param, **FAMILIES[request.param])
    made = {"base": base, "a": tuned(base, 1), "b": tuned(base, 2)}
    return {name: Loaded.of(model.float().eval(), words()) for name, model in made.items()}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is told as soon as it is said."""
    monkeypatch.setattr(chat, "TICK", 0.0)


def ask(trio: Mapping[str, Loaded], **options: Any) -> dict[str, Reply]:
    question = Question({name: asked(LENGTHS[name]) for name in trio}, **options)
    return {reply.column: reply for reply in answer(question, trio)}


def prompt(name: str, loaded: Loaded) -> torch.Tensor:
    return torch.tensor([tokens_of(name, loaded.tokenizer, asked(LENGTHS[name]))])


def generated(name: str, loaded: Loaded, **options: Any) -> list[int]:
    """Tokens by transformers, which stops at what the model's own settings say."""
    ids = prompt(name, loaded)
    out = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
        pad_token_id=0, **options,
    )  # fmt: skip
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


def ends(trio: Mapping[str, Loaded], tokens: Any) -> None:
    for loaded in trio.values():
        loaded.model.generation_config = GenerationConfig(eos_token_id=tokens, pad_token_id=0)


def test_ragged_prompts(trio: dict[str, Loaded]) -> None:
    """Columns whose prompts have other lengths say what each says to its own."""
    ends(trio, None)
    replies = ask(trio, max_new_tokens=TOKENS)
    for name, loaded in trio.items():
        said = generated(name, loaded)
        assert replies[name].text == loaded.tokenizer.decode(said)
        assert (replies[name].tokens, replies[name].ended) == (TOKENS, "length limit")


@pytest.mark.parametrize("at", [0, 1, 7])
def test_lists_of_stop_tokens(trio: dict[str, Loaded], at: int) -> None:
    """Any token of a list ends an answer, wherever it comes, and is not part of its text."""
    ends(trio, None)
    free = {name: generated(name, loaded) for name, loaded in trio.items()}
    ends(trio, [62, 63, *(said[at] for said in free.values())])
    replies = ask(trio, max_new_tokens=TOKENS)
    for name, loaded in trio.items():
        said = generated(name, loaded)
        assert len(said) <= at + 1
        assert replies[name].ended == "end of text"
        assert replies[name].tokens == len(said) - 1
        assert replies[name].text == loaded.tokenizer.decode(said[:-1])


def likely(loaded: Loaded, ids: torch.Tensor, **options: Any) -> dict[int, float]:
    """What transformers would draw the next token from, by its own processors."""
    out = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=True,
        return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    found = out.scores[0][0].softmax(-1)
    return {n: float(found[n]) for n in found.nonzero()[:, 0].tolist()}


def chi_square(seen: Mapping[str, int], wanted: Mapping[str, float]) -> float:
    """Pearson's statistic in its standard deviations from its mean, rare outcomes as one."""
    count = sum(seen.values())
    common = {what: p * count for what, p in wanted.items() if p * count >= 5}
    rest = count - sum(common.values())
    pairs = [(seen.get(what, 0), e) for what, e in common.items()]
    pairs.append((count - sum(n for n, _ in pairs), max(rest, 1.0)))
    freedom = len(pairs) - 1
    return (sum((n - e) ** 2 / e for n, e in pairs) - freedom) / math.sqrt(2 * freedom)


SETTINGS = ({}, {"top_k": 0}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 12, "top_p": 0.8})
DRAWS = 400


def forgetful() -> Any:
    """A model to which all tokens are alike: each draw of an answer is from the same scores."""
    model = build("llama", max_position_embeddings=1024).float().eval()
    model.model.embed_tokens.weight.data[:] = model.model.embed_tokens.weight[5].clone()
    return model


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("settings", SETTINGS)
def test_samples_are_transformers_own(settings: dict[str, Any]) -> None:
    """Many draws are spread as `generate` would spread them, and not as at another temperature."""
    loaded = Loaded.of(forgetful(), words())
    loaded.model.generation_config = GenerationConfig(pad_token_id=0, **settings)
    options = {"max_new_tokens": DRAWS, "temperature": 0.7, "seed": 7}
    seen = Counter(ask({"a": loaded}, **options)["a"].text.split())
    assert seen.total() == DRAWS
    ids = prompt("a", loaded)
    right, wrong = (
        {WORDS[n]: p for n, p in likely(loaded, ids, temperature=temperature).items()}
        for temperature in (0.7, 2.0)
    )
    assert seen.keys() <= right.keys()
    assert chi_square(seen, right) < 4
    assert chi_square(seen, wrong) > 8


class Passes:
    """Counts a model's passes."""

    def __init__(self, trio: Mapping[str, Loaded]) -> None:
        self.count = 0
        self.hooks = [m.model.register_forward_pre_hook(self.look) for m in trio.values()]

    def look(self, *_: Any) -> None:
        self.count += 1

    def end(self) -> None:
        for hook in self.hooks:
            hook.remove()


@pytest.mark.usefixtures("at_once")
def test_stop_at_every_point() -> None:
    """Closed after any reply: no pass follows, no thread stays, what was said begins the whole
    answer, and the next question is answered in full."""
    base = build("llama", **LONG)
    made = {"base": base, "a": tuned(base, 1), "b": tuned(base, 2)}
    trio = {name: Loaded.of(model.float().eval(), words()) for name, model in made.items()}
    ends(trio, None)
    whole = {name: reply.text for name, reply in ask(trio, max_new_tokens=TOKENS).items()}
    before = set(threading.enumerate())
    question = Question({name: asked(LENGTHS[name]) for name in trio}, TOKENS)
    passes = Passes(trio)
    for point in range(40):
        running = answer(question, trio)
        said = [reply for _, reply in zip(range(point), running, strict=False)]
        running.close()  # type: ignore[attr-defined]  # it is a generator
        count = passes.count
        assert all(whole[reply.column].startswith(reply.text) for reply in said)
        assert len(said) == point or len([r for r in said if r.ended]) == len(trio)
        time.sleep(0.002)
        assert passes.count == count
    passes.end()
    assert no_more_than(before)
    again = {name: reply.text for name, reply in ask(trio, max_new_tokens=TOKENS).items()}
    assert again == whole
