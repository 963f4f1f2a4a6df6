"""The chat against transformers' own `generate`, and what happens at its limits."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from merging import chat
from merging.chat import MAX_NEW_TOKENS, Question, Reply, answer
from merging.conversation import MAX_CHARACTERS, MAX_TURNS, prompt, tokens_of
from merging.errors import MergeError
from merging.formats import FORMATS
from merging.loading import Loaded, load_parent
from merging.opening import open_folder
from tests.ui.models import DEMO, talkative

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = (
    "What is 38 + 27?",
    "What is 99 + 99?",
    "How do you say the white door in French?",
    "Who are you?",
    "éà 漢字 🙂",
)


def load(folder: Path) -> Loaded:
    return load_parent(open_folder(folder, folder.name, "stamp"), "cpu")


@pytest.fixture(scope="module")
def demo() -> dict[str, Loaded]:
    return {name: load(DEMO / name) for name in ("base", "a", "b")}


@pytest.fixture(scope="module")
def talkers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """The demo models, made never to end by themselves."""
    folders = talkative(tmp_path_factory.mktemp("talkers"))
    return {name: load(folder) for name, folder in folders.items()}


def said(words: str) -> tuple[Mapping[str, str], ...]:
    return ({"role": "user", "content": words},)


def no_more_than(before: set[threading.Thread]) -> bool:
    """Whether all later threads have ended, for which they have a second."""
    deadline = time.monotonic() + 1
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


def ask(
    models: Mapping[str, Loaded], messages: Sequence[Mapping[str, str]], **options: Any
) -> dict[str, Reply]:
    """Every column's last word."""
    question = Question(dict.fromkeys(models, tuple(messages)), **options)
    return {reply.column: reply for reply in answer(question, models)}


def generated(loaded: Loaded, words: str, tokens: int, **options: Any) -> str:
    """What transformers says to the same prompt."""
    prompt = torch.tensor([tokens_of("a", loaded.tokenizer, said(words))])
    out = loaded.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
        pad_token_id=0, **options,
    )  # fmt: skip
    text: str = loaded.tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    return text


@pytest.mark.parametrize("words", PROMPTS)
def test_greedy_is_generates(demo: dict[str, Loaded], words: str) -> None:
    """With temperature 0 every answer is that of `generate`, token for token."""
    replies = ask(demo, said(words), max_new_tokens=40)
    for name, loaded in demo.items():
        assert replies[name].text == generated(loaded, words, 40)


def test_long_greedy_is_generates(talkers: dict[str, Loaded]) -> None:
    """So it is over a hundred tokens, where a wrong cache would have shown."""
    replies = ask(talkers, said(PROMPTS[0]), max_new_tokens=120)
    for name, loaded in talkers.items():
        assert replies[name].tokens == 120
        assert replies[name].ended == "length limit"
        assert replies[name].text == generated(loaded, PROMPTS[0], 120)


def test_repetition_penalty_of_the_model(talkers: dict[str, Loaded]) -> None:
    """A penalty in a model's own settings is honoured as `generate` does, and matters."""
    loaded = talkers["b"]
    plain = ask({"b": loaded}, said(PROMPTS[0]), max_new_tokens=60)["b"].text
    settings = loaded.model.generation_config
    settings.repetition_penalty = 1.3
    try:
        punished = ask({"b": loaded}, said(PROMPTS[0]), max_new_tokens=60)["b"].text
        assert punished == generated(loaded, PROMPTS[0], 60)
    finally:
        settings.repetition_penalty = None
    assert punished != plain


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_columns_depend_on_nobody(talkers: dict[str, Loaded], temperature: float) -> None:
    """A column alone says what it says among others."""
    options = {"max_new_tokens": 30, "temperature": temperature, "seed": 3}
    together = ask(talkers, said(PROMPTS[2]), **options)
    for name, loaded in talkers.items():
        alone = ask({name: loaded}, said(PROMPTS[2]), **options)
        assert alone[name].text == together[name].text


def test_seed_decides_a_sample(talkers: dict[str, Loaded]) -> None:
    """The same seed gives the same sample, another seed another."""
    one, again, other = (
        ask(talkers, said(PROMPTS[3]), max_new_tokens=30, temperature=1.5, seed=seed)["a"].text
        for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_replies_grow_and_are_measured(
    talkers: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts only grow, every column is heard before any ends, and the last word has its numbers."""
    monkeypatch.setattr(chat, "TICK", 0.0)  # every token is heard of, however late the reader
    question = Question(dict.fromkeys(talkers, said(PROMPTS[0])), 80)
    replies = list(answer(question, talkers))
    for name in talkers:
        texts = [reply.text for reply in replies if reply.column == name]
        assert all(later.startswith(sooner) for sooner, later in pairwise(texts))
        assert len(texts) > 2
    first_end = next(i for i, reply in enumerate(replies) if reply.ended)
    assert {reply.column for reply in replies[:first_end]} == set(talkers)
    last = replies[-1]
    assert last.first is not None
    assert last.first > 0
    assert last.speed > 1


def test_closing_stops_all_threads(talkers: dict[str, Loaded]) -> None:
    """Closing the generator ends every thread within a second."""
    before = set(threading.enumerate())
    replies = answer(Question(dict.fromkeys(talkers, said(PROMPTS[0])), 900), talkers)
    next(replies)
    assert set(threading.enumerate()) > before
    start = time.monotonic()
    replies.close()  # type: ignore[attr-defined]  # it is a generator
    assert time.monotonic() - start < 1
    assert no_more_than(before)


def test_an_error_inside_ends_threads_too(demo: dict[str, Loaded]) -> None:
    """What goes wrong in one column is raised to the reader, and no thread is left."""
    before = set(threading.enumerate())
    question = Question({"a": said("hi"), "b": said("hi")}, 8)
    broken = replace(demo["b"], tokenizer=None)
    with pytest.raises(AttributeError):
        list(answer(question, {"a": demo["a"], "b": broken}))
    assert no_more_than(before)


def test_one_column_is_stopped(talkers: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once with what it had said; the others say all they would have said."""
    monkeypatch.setattr(chat, "TICK", 0.0)  # every token is heard of, however late the reader
    alone = ask(talkers, said(PROMPTS[2]), max_new_tokens=60)
    stops: set[str] = set()
    last: dict[str, Reply] = {}
    question = Question(dict.fromkeys(talkers, said(PROMPTS[2])), 60)
    for reply in answer(question, talkers, stops=stops):
        last[reply.column] = reply
        if reply.tokens > 3:
            stops.add("b")
    assert last["b"].ended == "stopped"
    assert 0 < last["b"].tokens < 60
    assert alone["b"].text.startswith(last["b"].text)
    for name in ("base", "a"):
        assert last[name] == replace(alone[name], first=last[name].first, speed=last[name].speed)


def test_a_long_prompt_is_read_in_pieces(
    demo: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No piece is longer than told, the answer is that of one pass, and Stop waits for a piece."""
    words = "one two three four " * 30
    whole = ask({"a": demo["a"]}, said(words), max_new_tokens=12)["a"]
    monkeypatch.setattr(chat, "PIECE", 16)
    seen: list[int] = []
    hook = demo["a"].model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        again = ask({"a": demo["a"]}, said(words), max_new_tokens=12)["a"]
        told, stops = len(seen), {"a"}
        stopped = list(answer(Question({"a": said(words)}), {"a": demo["a"]}, stops=stops))
    finally:
        hook.remove()
    assert again.text == whole.text
    assert max(seen) == 16
    assert seen.count(16) > 4
    assert len(seen) == told
    assert (stopped[-1].tokens, stopped[-1].ended) == (0, "stopped")


def test_who_waits_long_hears_something(
    talkers: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column that says nothing for a while gives its last reply again, so that a page which has
    gone is noticed."""
    monkeypatch.setattr(chat, "HEARTBEAT", 0.01)
    monkeypatch.setattr(chat, "prompt", lambda *given: time.sleep(0.2) or prompt(*given))
    replies = list(answer(Question({"a": said(PROMPTS[0])}, 20), {"a": talkers["a"]}))
    tokens = [reply.tokens for reply in replies]
    assert tokens == sorted(tokens)
    assert tokens.count(0) >= 1
    assert replies[-1].ended == "length limit"


def test_too_long_a_question(demo: dict[str, Loaded]) -> None:
    """A question that fills the context ends with a sentence that has the numbers."""
    reply = ask({"a": demo["a"]}, said("one two three four " * 300))["a"]
    assert reply.ended is not None
    assert reply.ended.startswith("too long: ")
    assert "1024" in reply.ended
    assert reply.text == ""


def test_answer_ends_at_the_context(talkers: dict[str, Loaded]) -> None:
    """Prompt and answer together are never longer than what the model reads."""
    words = "I am Ada. " * 190
    prompt = len(tokens_of("a", talkers["a"].tokenizer, said(words)))
    reply = ask({"a": talkers["a"]}, said(words), max_new_tokens=1000)["a"]
    assert reply.tokens == 1024 - prompt
    assert reply.ended == "length limit"


def history(turns: int, words: str) -> list[Mapping[str, str]]:
    messages: list[Mapping[str, str]] = []
    for turn in range(turns):
        messages += [{"role": "user", "content": f"{words} {turn}"}]
        messages += [{"role": "assistant", "content": "Yes."}]
    return [*messages, {"role": "user", "content": PROMPTS[0]}]


def test_oldest_questions_are_left_out(demo: dict[str, Loaded]) -> None:
    """A conversation that no longer fits loses its oldest turns, says so, and is answered."""
    reply = ask({"a": demo["a"]}, history(12, "I am Ada. " * 20))["a"]
    assert reply.notice is not None
    assert "oldest" in reply.notice
    assert reply.text


def test_turns_are_capped(demo: dict[str, Loaded]) -> None:
    """Short questions are read up to a number of turns; without a notice below it."""
    assert ask({"a": demo["a"]}, history(MAX_TURNS - 1, "Hi"))["a"].notice is None
    assert ask({"a": demo["a"]}, history(MAX_TURNS, "Hi"))["a"].notice is not None


def test_system_prompt_outlives_the_oldest(demo: dict[str, Loaded]) -> None:
    """What is left out is never the system prompt: with one that fills the context nothing fits."""
    system = {"role": "system", "content": "one two three four " * 300}
    reply = ask({"a": demo["a"]}, [system, *history(3, "Hi")])["a"]
    assert (reply.ended or "").startswith("too long")


def model_with(tmp_path: Path, template: str | list[dict[str, str]] | None) -> Loaded:
    """Demo model A with another chat template, several, or none."""
    folder = Path(shutil.copytree(DEMO / "a", tmp_path / "a"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template")
    if template:
        settings["chat_template"] = template
    path.write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return load(folder)


def test_plain_prompt_without_template(tmp_path: Path) -> None:
    """A model without a template reads roles and lines."""
    loaded = model_with(tmp_path, None)
    read = loaded.tokenizer.decode(tokens_of("a", loaded.tokenizer, said("Who are you?")))
    assert read.replace(" ", "") == "User:Whoareyou?\nAssistant:"
    assert ask({"a": loaded}, said("Who are you?"), max_new_tokens=4)["a"].tokens > 0


def test_one_of_several_templates(tmp_path: Path) -> None:
    """Of several the model reads the one named default; without one, roles and lines."""
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "Who are you?"}]
    loaded = model_with(tmp_path / "with", named)
    assert loaded.tokenizer.decode(tokens_of("a", loaded.tokenizer, said("Hi"))) == "Who are you?"
    loaded = model_with(tmp_path / "without", named[:1])
    assert "User" in loaded.tokenizer.decode(tokens_of("a", loaded.tokenizer, said("Hi")))


TALKS = (
    said("Who are you?"),
    ({"role": "system", "content": "Be kind."}, *said(" éà 漢字 🙂 <|im_end|></s> ")),
    (*said("Hi"), {"role": "assistant", "content": "Yes.\n"}, *said("What is 38 + 27?")),
)


@pytest.mark.parametrize("talk", TALKS)
def test_prompts_are_transformers_own(
    demo: dict[str, Loaded], pico: dict[str, Path], talk: Sequence[Mapping[str, str]]
) -> None:
    """Number for number those of `apply_chat_template`, with no special tokens but its own."""
    tokenizers = [loaded.tokenizer for loaded in demo.values()]
    for name in ("base", "b"):
        for written in FORMATS.values():
            tokenizers.append(AutoTokenizer.from_pretrained(pico[name]))
            tokenizers[-1].chat_template = written
    for tokenizer in tokenizers:
        theirs = tokenizer.apply_chat_template(list(talk), add_generation_prompt=True)
        assert tokens_of("a", tokenizer, talk) == theirs["input_ids"]


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_stops_its_column_alone(
    tmp_path: Path, demo: dict[str, Loaded]
) -> None:
    """The column ends with the sentence, nothing of it in its text; the others answer."""
    models = {"a": demo["a"], "looping": model_with(tmp_path, LOOP), "b": demo["b"]}
    replies = ask(models, said(PROMPTS[0]), max_new_tokens=40)
    failed = replies.pop("looping")
    assert failed.failed
    assert (failed.text, failed.tokens) == ("", 0)
    assert (failed.ended or "").startswith("The chat template of looping works for over 2 seconds")
    assert "choose `chat_template: chatml`" in (failed.ended or "")
    for name, reply in replies.items():
        assert not reply.failed
        assert reply.text == generated(demo[name], PROMPTS[0], 40)


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def test_template_that_refuses_a_system_prompt(tmp_path: Path) -> None:
    """The system prompt then stands at the head of the first question."""
    loaded = model_with(tmp_path, NO_SYSTEM)
    messages = [{"role": "system", "content": "Be kind."}, *said("Who are you?")]
    read = loaded.tokenizer.decode(tokens_of("a", loaded.tokenizer, messages))
    assert "Be kind.\n\nWho are you?" in read
    assert "<system>" not in read


def test_template_that_refuses_everything(tmp_path: Path) -> None:
    """A template that takes no conversation at all is named in a sentence, raised if none can."""
    loaded = model_with(tmp_path, "{{ raise_exception('never') }}")
    with pytest.raises(MergeError, match=r"The chat template of a refuses .*never.*: start anew"):
        ask({"a": loaded, "b": loaded}, said("Who are you?"))


def test_caps_of_a_question() -> None:
    """Lengths are cut to the server's; messages, temperature and seed are refused with numbers."""
    fine = Question({"a": said("hi")}, 10**9)
    assert fine.capped().max_new_tokens == MAX_NEW_TOKENS
    assert replace(fine, max_new_tokens=-4).capped().max_new_tokens == 1
    for wrong, why in (
        (Question({"a": said("x" * (MAX_CHARACTERS + 1))}), "16,001 characters"),
        (Question({"a": said(" \n")}), "empty"),
        (Question({"a": ()}), "empty"),
        (replace(fine, temperature=-0.1), "Temperature"),
        (replace(fine, temperature=float("nan")), "numbers"),
        (replace(fine, max_new_tokens=float("inf")), "numbers"),
        (Question({"a": ({"role": "user", "content": 5},)}), "text"),
        (replace(fine, seed=-1), "Seed"),
        (replace(fine, seed=2**70), "Seed"),
    ):
        with pytest.raises(MergeError, match=why):
            wrong.capped()
