"""What a model has read is not read again, and it says the same as if it had been."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from merging import reading
from merging.chat import Question, Reply, answer
from merging.conversation import tokens_of
from merging.library import READ, Library
from merging.loading import Loaded
from merging.reading import Pasts, Reader
from tests.conftest import WORDS, tokenizer
from tests.decoders import GROUPED, build

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = {"max_position_embeddings": 256}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: build("llama", **LONG),
    "mistral": lambda: build("mistral", **LONG),
    "mistral window": lambda: build("mistral", sliding_window=16, **LONG),
    "qwen2": lambda: build("qwen2", **LONG),
    "gemma": lambda: build("gemma", **LONG),
    "gemma2 window": lambda: build("gemma2", **LONG),
    "gpt2": lambda: build("gpt2", n_positions=256),
}
WINDOWED = ("mistral window", "gemma2 window")
ROOM = 10**9


@pytest.fixture(scope="module", params=list(MODELS))
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return MODELS[kind]().float().eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return MODELS["llama"]().float().eval()


def words(count: int, seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(3, len(WORDS), (count,), generator=random).tolist()


def row(tokens: Sequence[int]) -> Tensor:
    return torch.tensor([list(tokens)])


@torch.inference_mode()
def read(reader: Reader, tokens: Sequence[int]) -> Tensor:
    """The scores after the last of the tokens, of which some are read already."""
    return reader.read(row(tokens[reader.count :]))[0, -1]


@torch.inference_mode()
def plain(model: Any, tokens: Sequence[int]) -> Tensor:
    """The same by the model alone, without any cache."""
    found: Tensor = model(row(tokens), use_cache=False).logits[0, -1]
    return found


class Linears(TorchFunctionMode):
    """Notes how many rows linear layers are given, and in which type."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, torch.dtype]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.nn.functional.linear:
            self.seen.append((args[0][..., 0].numel(), args[0].dtype))
        return function(*args, **kwargs or {})


def test_a_prompt_in_bf16_is_read_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bf16 is slow: every linear layer that has many rows, and no other, with its scores."""
    monkeypatch.setattr(reading, "_slow", lambda _: True)
    model = build("qwen2").bfloat16().eval()  # biases too
    plain = Reader.of(model)
    monkeypatch.setattr(reading, "FEW", 10**6)
    wanted = read(plain, words(20, 1))
    monkeypatch.setattr(reading, "FEW", 4)
    reader = Reader.of(model)
    with Linears() as prompt:
        found = read(reader, words(20, 1))
    with Linears() as token:
        read(reader, words(21, 1))
    layers = sum(isinstance(part, torch.nn.Linear) for part in model.modules())
    assert prompt.seen == [(20, torch.float32)] * (layers - 1) + [(1, torch.bfloat16)]
    assert token.seen == [(1, torch.bfloat16)] * layers
    assert torch.allclose(found, wanted, atol=0.05)


@pytest.mark.parametrize("beginning", [6, 15, 16, 17, 40])
@pytest.mark.parametrize("other", [0, 1, 9, 30])
def test_what_was_read_changes_no_score(kind: str, model: Any, beginning: int, other: int) -> None:
    """Whatever a kept reading shares with the tokens, the scores are those of one pass."""
    pasts, tokens = Pasts(ROOM), words(48, 1)
    earlier = tokens[:beginning] + words(other, 2)
    first = Reader.of(model)
    assert torch.allclose(read(first, earlier), plain(model, earlier), atol=1e-4)
    pasts.keep(first, earlier)
    for _ in range(2):  # the first to go on must leave what is kept as it is
        reader = pasts.reader(model, tokens)
        lost = kind in WINDOWED and other and len(earlier) >= 16
        assert reader.count == (0 if lost else beginning)
        assert torch.allclose(read(reader, tokens), plain(model, tokens), atol=1e-4)


def test_the_last_token_is_always_read(model: Any) -> None:
    """A question that was read to its end is asked again: its last token gives the scores."""
    pasts, tokens = Pasts(ROOM), words(12, 3)
    reader = Reader.of(model)
    first = read(reader, tokens)
    pasts.keep(reader, tokens)
    again = pasts.reader(model, tokens)
    assert again.count == 11
    assert torch.allclose(read(again, tokens), first, atol=1e-4)


@contextmanager
def lengths(model: Any) -> Iterator[list[int]]:
    """How many tokens each pass of the model reads."""
    seen: list[int] = []

    def look(_: Any, __: Any, given: dict[str, Any]) -> None:
        seen.append(given["input_ids"].shape[1])

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    hook.remove()


def last(question: Question, loaded: Loaded, pasts: Pasts | None = None) -> Reply:
    return list(answer(question, {"a": loaded}, pasts))[-1]


def test_a_conversation_is_read_once(kind: str, model: Any) -> None:
    """Four turns say what `generate` says to each whole prompt, and read only what is new."""
    loaded, pasts = Loaded.of(model, tokenizer()), Pasts(ROOM)
    messages: list[dict[str, str]] = []
    known = 0
    for turn in range(4):
        asked = " ".join(WORDS[n] for n in words(4 + turn, turn))
        messages.append({"role": "user", "content": asked})
        prompt = tokens_of("a", loaded.tokenizer, messages)
        with lengths(model) as seen:
            reply = last(Question({"a": messages}, 8), loaded, pasts)
        out = model.generate(
            row(prompt), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8,
            do_sample=False, pad_token_id=0,
        )[0, len(prompt) :]  # fmt: skip
        assert reply.text == loaded.tokenizer.decode(out, skip_special_tokens=True)
        assert seen[0] <= len(prompt) - known
        known = len(prompt) if kind not in WINDOWED else 0
        messages.append({"role": "assistant", "content": reply.text})


def test_a_stopped_answer_is_kept_as_far_as_it_went(llama: Any) -> None:
    """Closed in the middle, then asked again: the prompt is not read again, and nothing is lost."""
    loaded, pasts = Loaded.of(llama, tokenizer()), Pasts(ROOM)
    question = Question({"a": ({"role": "user", "content": "w1 w2 w3"},)}, 24)
    running = answer(question, {"a": loaded}, pasts)
    next(running)
    running.close()  # type: ignore[attr-defined]  # it is a generator
    with lengths(llama) as seen:
        again = last(question, loaded, pasts)
    assert seen[0] == 1
    assert again.text == last(question, loaded).text


def test_nothing_is_kept_without_room(llama: Any) -> None:
    """Readings beyond the room go, those that were not used for longest first."""
    tokens = [words(20, seed) for seed in range(3)]
    each = 2 * 2 * 8 * 20 * 4  # keys and values, layers, one head's width, tokens, float32
    pasts = Pasts(2 * each)
    for own in tokens[:2]:
        keep(pasts, llama, own)
    assert pasts.reader(llama, tokens[0]).count == 19  # and so it was used after the other
    keep(pasts, llama, tokens[2])
    assert [pasts.reader(llama, own).count for own in tokens] == [19, 0, 19]
    none = Pasts(each - 1)
    keep(none, llama, tokens[0])
    assert not none.kept


def keep(pasts: Pasts, model: Any, tokens: Sequence[int]) -> None:
    reader = pasts.reader(model, tokens)
    read(reader, tokens)
    pasts.keep(reader, tokens)


def test_a_longer_reading_takes_the_place_of_its_beginning(llama: Any) -> None:
    """A conversation is kept once, however many turns it has; another one beside it."""
    pasts, tokens = Pasts(ROOM), words(30, 4)
    for end in (10, 20, 30):
        keep(pasts, llama, tokens[:end])
    keep(pasts, llama, words(10, 5))
    assert sorted(len(known) for _, known in pasts.kept) == [10, 30]


def test_models_do_not_share_what_they_have_read(llama: Any) -> None:
    """The same tokens read by another model are no use, and go when that model has gone."""
    pasts, tokens = Pasts(ROOM), words(10, 6)
    other = build("llama", **LONG).float().eval()
    keep(pasts, other, tokens)
    assert pasts.reader(llama, tokens).count == 0
    del other
    gc.collect()
    keep(pasts, llama, tokens)
    assert len(pasts.kept) == 1


def test_layers_with_a_state_are_not_read_on() -> None:
    """A recurrent layer cannot go back, nor is every one right over several tokens: begin anew."""
    config = AutoConfig.for_model(
        "lfm2", **(GROUPED | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 32})
    )
    model = AutoModelForCausalLM.from_config(config).float().eval()
    pasts = Pasts(ROOM)
    keep(pasts, model, words(10, 7))
    assert not pasts.kept


def test_room_is_a_share_of_the_budget() -> None:
    """A library has room for what its models read, in proportion to what they may take."""
    assert Library("cpu", 8000).pasts.room == 8000 * READ
