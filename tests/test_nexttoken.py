"""The next-token view against plain sums over one uncached pass of each model."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from merging import nexttoken
from merging.conversation import tokens_of
from merging.errors import MergeError
from merging.loading import Loaded, load_parent
from merging.nexttoken import Distance, Inspection, NextTokens, Read, next_tokens
from merging.opening import open_folder
from merging.reading import Pasts, Reader
from tests.conftest import EXTRA, WEIGHTS, WORDS, changed

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = ({"role": "user", "content": "w3 w14 w15"},)
ANSWER = "w5 w9 w23 w7 w7 w50 w1 w2 w3 w4"
Spoken = Sequence[Mapping[str, str]]


def load(folder: Path) -> Loaded:
    return load_parent(open_folder(folder, folder.name, "stamp"), "cpu")


@pytest.fixture(scope="module")
def loaded(pico: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """`a`, `c`, and `b` with two more tokens, which it likes now and then, in float32."""
    heads = load_file(pico["b"] / WEIGHTS)["lm_head.weight"].clone()
    heads[len(WORDS) :] *= 2.5
    fond = changed(pico["b"], tmp_path_factory.mktemp("b") / "b", tensors={"lm_head.weight": heads})
    folders = {"a": pico["a"], "b": fond, "c": pico["c"]}
    found = {name: load(folder) for name, folder in folders.items()}
    return {name: replace(each, model=each.model.float()) for name, each in found.items()}


def look(
    asked: Mapping[str, Loaded], answer: str = ANSWER, position: int = 0, column: str = "a",
    pasts: Pasts | None = None, said: Spoken = ASKED,
) -> NextTokens:  # fmt: skip
    inspection = Inspection(dict.fromkeys(asked, said), answer, column, position)
    return last(next_tokens(inspection, asked, pasts))


def last(events: Iterator[Read | NextTokens]) -> NextTokens:
    """What was seen, after all signs of progress."""
    *_, seen = events
    assert isinstance(seen, NextTokens)
    return seen


@torch.inference_mode()
def rows(loaded: Loaded, answer: str = ANSWER, said: Spoken = ASKED) -> list[dict[str, float]]:
    """Probabilities by token, after the prompt and each further token, in one pass."""
    prompt = tokens_of("a", loaded.tokenizer, said)
    ids = loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]
    scores = loaded.model(torch.tensor([prompt + ids]), use_cache=False).logits[0].double()
    names = loaded.tokenizer.convert_ids_to_tokens(range(scores.shape[1]))
    found = scores[len(prompt) - 1 :].softmax(-1).tolist()
    return [dict(zip(names, row, strict=True)) for row in found]


def expected(here: Mapping[str, float], there: Mapping[str, float]) -> tuple[float, float]:
    """KL over the names both have, and the larger share of either beyond these."""
    both = here.keys() & there.keys()
    p, q = (sum(row[name] for name in both) for row in (here, there))
    nats = sum(here[n] / p * math.log((here[n] / p) / (there[n] / q)) for n in both)
    return nats, max(1 - p, 1 - q)


def near(found: Distance, here: Mapping[str, float], there: Mapping[str, float]) -> None:
    nats, missing = expected(here, there)
    assert found.missing == pytest.approx(missing, abs=1e-5)
    if missing > 0.1:
        assert found.nats is None
    else:
        assert found.nats == pytest.approx(nats, abs=1e-4)


@pytest.mark.parametrize("piece", [1, 3, 64])
def test_distances(loaded: dict[str, Loaded], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every token the divergence and the missing mass, however many are taken at a time."""
    monkeypatch.setattr(nexttoken, "PIECE", piece)
    seen = look(loaded)
    assert seen.distances.keys() == {"b", "c"}
    assert "".join(seen.tokens) == ANSWER
    assert seen.failed == {}
    own = rows(loaded["a"])
    for name, distances in seen.distances.items():
        theirs = rows(loaded[name])
        assert len(distances) == len(seen.tokens) == len(theirs) - 1
        for k, distance in enumerate(distances):
            near(distance, own[k], theirs[k])
    assert all(d.missing < 1e-6 and d.nats for d in seen.distances["c"])
    assert len({d.nats is None for d in seen.distances["b"]}) == 2  # both kinds were met


def test_missing_mass_is_of_either(loaded: dict[str, Loaded]) -> None:
    """What the answering model alone knows counts as what the other alone knows."""
    seen, own, theirs = look(loaded, column="b"), rows(loaded["b"]), rows(loaded["a"])
    for k, distance in enumerate(seen.distances["a"]):
        near(distance, own[k], theirs[k])


@pytest.mark.parametrize("position", [0, 4, 10])
@pytest.mark.parametrize("piece", [3, 64])
def test_choices(
    loaded: dict[str, Loaded], position: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The five likeliest of each model, after as many tokens of the answer, its end included."""
    monkeypatch.setattr(nexttoken, "PIECE", piece)
    seen = look(loaded, position=position)
    assert list(seen.choices) == ["a", "b", "c"]
    for name, choices in seen.choices.items():
        row = rows(loaded[name])[position]
        assert [c.token for c in choices] == sorted(row, key=lambda n: -row[n])[:5]
        assert [c.probability for c in choices] == pytest.approx(
            [row[c.token] for c in choices], abs=1e-5
        )


def test_position_ends_with_the_answer(loaded: dict[str, Loaded]) -> None:
    """A position behind the answer is its end; without an answer, it is what begins one."""
    end = look(loaded, position=99)
    assert end.position == 10
    assert likeliest(end) == likeliest(look(loaded, position=10))
    nothing = look(loaded, "", position=3)
    assert (nothing.tokens, nothing.position) == ((), 0)
    assert nothing.distances == {"b": (), "c": ()}
    assert likeliest(nothing) == likeliest(look(loaded)) != likeliest(end)


def likeliest(seen: NextTokens) -> dict[str, list[str]]:
    return {name: [c.token for c in choices] for name, choices in seen.choices.items()}


def shuffled(model: Loaded) -> Loaded:
    """The same model with its tokens under other numbers."""
    order = torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(0))
    vocabulary = {WORDS[n]: i for i, n in enumerate(order.tolist())}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")
    fast.chat_template = TEMPLATE
    state = dict(model.model.state_dict())
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        state[name] = state[name][order]
    other = type(model.model)(model.model.config).eval()
    other.load_state_dict(state)
    return Loaded.of(other, fast)


TEMPLATE = "<s> {% for m in messages %}{{ m.content }} {% endfor %}"


def templated(model: Loaded) -> Loaded:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer.backend_tokenizer, unk_token="<unk>", bos_token="<s>"
    )
    tokenizer.chat_template = TEMPLATE
    return Loaded.of(model.model, tokenizer)


def test_tokens_are_matched_by_name_not_by_number(loaded: dict[str, Loaded]) -> None:
    """A model whose tokens have other numbers is as far away as with the same ones."""
    asked = {"a": templated(loaded["a"]), "c": templated(loaded["c"]), "s": shuffled(loaded["c"])}
    seen = look(asked, position=3)
    for plain, other in zip(seen.distances["c"], seen.distances["s"], strict=True):
        assert plain.nats == pytest.approx(other.nats, abs=1e-5)
        assert other.missing == pytest.approx(0, abs=1e-6)
    assert [c.token for c in seen.choices["c"]] == [c.token for c in seen.choices["s"]]


def by_letters(model: Loaded) -> Loaded:
    """The same words, but cut before every digit: other tokens for the same text."""
    words = [*WORDS[:3], "w", *"0123456789", *(f"x{n}" for n in range(50))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")
    return Loaded.of(model.model, fast)


def test_other_tokens_for_the_same_text(loaded: dict[str, Loaded]) -> None:
    """Models are compared where both begin a token, if they know the same ones; choices are seen
    after the same text anywhere."""
    letters = by_letters(loaded["c"])
    answer = "w5 w23 w7"
    seen = look({"a": letters, "c": loaded["c"]}, answer, position=4)
    assert seen.tokens == ("w", "5 ", "w", "2", "3 ", "w", "7")
    assert (seen.tokens[4], seen.said) == ("3 ", "3")  # marked though its text is cut otherwise
    before = [d.missing for d in seen.distances["c"]]
    assert [m == 1 for m in before] == [False, True, False, True, True, False, True]
    assert all(d.nats is None for d in seen.distances["c"])
    row = rows(loaded["c"], "w5 w2")[-1]
    assert [c.token for c in seen.choices["c"]] == sorted(row, key=lambda n: -row[n])[:5]
    words = look({"a": loaded["c"], "c": letters}, answer, position=2)
    theirs = rows(letters, answer)
    assert words.choices["c"][0].token == max(theirs[5], key=lambda n: theirs[5][n])
    for k, place in enumerate((0, 2, 5)):
        near(words.distances["c"][k], rows(loaded["c"], answer)[k], theirs[place])


def test_what_was_read_is_not_read_again(loaded: dict[str, Loaded]) -> None:
    """With prompts that are known, the same is seen, and only the answer is read."""
    pasts = Pasts(10**9)
    for model in loaded.values():
        ids = tokens_of("a", model.tokenizer, ASKED)
        reader = Reader.of(model.model)
        with torch.inference_mode():
            reader.read(torch.tensor([ids]))
        pasts.keep(reader, ids)
    lengths: list[int] = []
    hooks = [
        model.model.register_forward_pre_hook(
            lambda _, __, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        for model in loaded.values()
    ]
    again = look(loaded, position=2, pasts=pasts)
    for hook in hooks:
        hook.remove()
    assert lengths == [1 + len(again.tokens)] * 3
    fresh = look(loaded, position=2)
    for name, distances in fresh.distances.items():
        for one, other in zip(distances, again.distances[name], strict=True):
            assert one.missing == pytest.approx(other.missing, abs=1e-5)
            assert one.nats == pytest.approx(other.nats, abs=1e-4)


def test_it_can_be_stopped_between_pieces(
    loaded: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each model says how far it has read, piece by piece; closed, none of them reads on."""
    monkeypatch.setattr(nexttoken, "PIECE", 4)
    asked = Inspection(dict.fromkeys(loaded, ASKED), ANSWER, "a", 0)
    *steps, _ = next_tokens(asked, loaded)
    places = len(ANSWER.split()) + 1
    assert steps == [Read(name, n, places) for n in (4, 8, places) for name in ("a", "b", "c")]
    calls: list[str] = []
    hooks = [
        model.model.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name, model in loaded.items()
    ]
    running = next_tokens(asked, loaded)
    assert [next(running) for _ in range(4)] == steps[:4]
    running.close()  # type: ignore[attr-defined]  # it is a generator
    for hook in hooks:
        hook.remove()
    assert calls == ["a", "b", "c", "a"]
    assert not torch.is_inference_mode_enabled()


def test_an_answer_is_cut_at_the_context(loaded: dict[str, Loaded]) -> None:
    """Of an answer that is longer than the model reads, what it reads is seen."""
    seen = look(loaded, "w5 " * 80, position=10**6)
    prompt = len(tokens_of("a", loaded["a"].tokenizer, ASKED))
    assert len(seen.tokens) == seen.position == 64 - prompt


def test_one_that_cannot_read_is_named(loaded: dict[str, Loaded]) -> None:
    """A column whose question is too long is left out with a sentence; others are seen."""
    long = ({"role": "user", "content": "w1 " * 80},)
    asked = Inspection({"a": ASKED, "b": long, "c": ASKED}, ANSWER, "a")
    seen = last(next_tokens(asked, loaded))
    assert seen.distances.keys() == {"c"}
    assert seen.choices.keys() == {"a", "c"}
    assert "64: shorten it" in seen.failed["b"]
    with pytest.raises(MergeError, match="shorten"):
        list(next_tokens(Inspection({"a": long}, ANSWER, "a"), {"a": loaded["a"]}))


@pytest.mark.parametrize(
    ("change", "why"),
    [({"answer": 5}, "must be text"), ({"position": -1}, "-1"), ({"position": "x"}, "none in an")],
)
def test_what_cannot_be_looked_into(
    loaded: dict[str, Loaded], change: dict[str, Any], why: str
) -> None:
    """An answer that is no text and a position that is none are refused in a sentence."""
    given: dict[str, Any] = {"answer": ANSWER, "position": 0} | change
    with pytest.raises(MergeError, match=why):
        list(next_tokens(Inspection(dict.fromkeys(loaded, ASKED), column="a", **given), loaded))


def test_it_pickles(loaded: dict[str, Loaded]) -> None:
    """What is asked and what is seen cross into a worker and back."""
    asked = Inspection(dict.fromkeys(loaded, ASKED), ANSWER, "a", 1)
    assert pickle.loads(pickle.dumps(asked)) == asked
    seen = last(next_tokens(asked, loaded))
    assert pickle.loads(pickle.dumps(seen)) == seen
    assert all(name in loaded["b"].tokenizer.get_vocab() for name in EXTRA)
