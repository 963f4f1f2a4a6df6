"""Columns say what transformers' own `generate` says: families, stop tokens, samples, and Stop."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from merging import chat
from merging.chat import Question, Reply, answer
from merging.conversation import tokens_of
from merging.errors import MergeError
from merging.loading import Loaded
from merging.turns import Turns
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


def ask(trio: Mapping[str, Loaded], turns: Turns | None = None, **options: Any) -> dict[str, Reply]:
    question = Question({name: asked(LENGTHS[name]) for name in trio}, **options)
    return {reply.column: reply for reply in answer(question, trio, turns=turns)}


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


def test_one_thread_drives_all(trio: dict[str, Loaded]) -> None:
    """As on a GPU: all passes are one thread's, a token each in turn, and answers stay the same."""
    ends(trio, None)
    with passes(trio) as seen:
        replies = ask(trio, Turns(1), max_new_tokens=TOKENS)
    assert [name for name, _ in seen] == [*trio] * TOKENS
    assert len({thread for _, thread in seen}) == 1
    for name, loaded in trio.items():
        assert replies[name].text == loaded.tokenizer.decode(generated(name, loaded))


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


RULES: dict[str, Callable[[list[int]], Any]] = {
    "sequence_bias": lambda said: [[said[:1], -20.0]],
    "repetition_penalty": lambda _: 1.5,
    "no_repeat_ngram_size": lambda _: 1,
    "bad_words_ids": lambda said: [said[:1], said[2:4]],
    "min_length": lambda _: LENGTHS["a"] + 14,
    "min_new_tokens": lambda _: 12,
    "exponential_decay_length_penalty": lambda _: [1, 3.0],
    "suppress_tokens": lambda said: said[:1],
    "begin_suppress_tokens": lambda said: said[:1],
}
"""Settings that change a greedy answer, by what is said without them."""
OF_ENDS = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")
"""Those that say when it may end: without them after six tokens, which others are not to meet."""


@pytest.mark.parametrize("setting", list(RULES))
def test_a_models_own_settings(setting: str) -> None:
    """What a model's own settings ask for is done as `generate` does it, and makes a difference."""
    loaded = Loaded.of(tuned(build("llama", **LONG), 1).float().eval(), words())
    ends({"a": loaded}, None)
    free = generated("a", loaded)
    ends({"a": loaded}, free[6] if setting in OF_ENDS else None)
    plain = ask({"a": loaded}, max_new_tokens=TOKENS)["a"].text
    setattr(loaded.model.generation_config, setting, RULES[setting](free))
    said = generated("a", loaded)
    reply = ask({"a": loaded}, max_new_tokens=TOKENS)["a"]
    spoken = said[:-1] if reply.ended == "end of text" else said
    assert reply.text == loaded.tokenizer.decode(spoken)
    assert reply.text != plain


def test_settings_that_cannot_be_followed() -> None:
    """A model's own settings that make no sense are told in a sentence."""
    loaded = Loaded.of(build("llama", **LONG).eval(), words())
    loaded.model.generation_config.repetition_penalty = -1.0
    with pytest.raises(MergeError, match=r"settings of a cannot be followed .*-1\.0.*: choose"):
        ask({"a": loaded})


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


SETTINGS = (
    {}, {"top_k": 0}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 12, "top_p": 0.8}, {"min_p": 0.3},
    {"typical_p": 0.5}, {"epsilon_cutoff": 0.03}, {"eta_cutoff": 0.2}, {"top_h": 0.4},
)  # fmt: skip
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


@contextmanager
def passes(trio: Mapping[str, Loaded]) -> Iterator[list[tuple[str, int]]]:
    """Whose each pass is, by name and thread, as they come."""
    seen: list[tuple[str, int]] = []
    hooks = [
        loaded.model.register_forward_pre_hook(
            lambda *_, name=name: seen.append((name, threading.get_ident()))
        )
        for name, loaded in trio.items()
    ]
    yield seen
    for hook in hooks:
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
    with passes(trio) as seen:
        for point in range(40):
            running = answer(question, trio)
            said = [reply for _, reply in zip(range(point), running, strict=False)]
            running.close()  # type: ignore[attr-defined]  # it is a generator
            count = len(seen)
            assert all(whole[reply.column].startswith(reply.text) for reply in said)
            assert len(said) == point or len([r for r in said if r.ended]) == len(trio)
            time.sleep(0.002)
            assert len(seen) == count
    assert no_more_than(before)
    again = {name: reply.text for name, reply in ask(trio, max_new_tokens=TOKENS).items()}
    assert again == whole
