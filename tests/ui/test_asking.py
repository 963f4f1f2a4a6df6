"""Questions that fail, wait, or are put again: what stands in the columns, and in the box."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from merging.chat import Reply
from merging.ui.jobs import Made
from merging.ui.transcript import Exchange
from merging.ui.visit import Visit as State
from tests.hub import LocalHub
from tests.ui.models import DEMO, WEIGHTS
from tests.ui.playground import Playground

Visit = Callable[..., Playground]
SUM = "What is 38 + 27?"
FRENCH = "How do you say the white door in French?"
MADE = Made("0", "", "TIES", ("x/a", "x/b"), {})


def put(visit: State, question: str, slots: tuple[str, ...] = ("a", "b")) -> State:
    models = {slot: f"x/{slot}" for slot in slots if slot != "merged"}
    return visit.put(Exchange(question, {}, models), slots, None)


def said(visit: State, slot: str, text: str, ended: str | None = "end of text") -> State:
    return visit.replied(Reply(slot, text, 1, 0.1, 1.0, ended, failed=not text))


def spoken(visit: State, slot: str) -> list[str]:
    return [message["content"] for message in visit.said[slot]]


def test_who_said_nothing_when_a_job_failed_is_as_before() -> None:
    """The others keep what they said, and whose it was stays known."""
    before = said(said(put(State(), "one"), "a", "1"), "b", "1").ended()
    asked = replace(put(before, "two"), models={"a": "x/a", "b": "y/b"})
    partly = said(asked, "a", "2", None).failed(before)
    assert (spoken(partly, "a"), spoken(partly, "b")) == (["one", "1", "two", "2"], ["one", "1"])
    assert partly.replies["a"].ended == "stopped" and partly.replies["b"].text == "1"
    assert partly.models == {"a": "x/a", "b": "x/b"} and not partly.running
    assert asked.failed(before) == before
    first = put(State(), "one")
    assert first.failed(State()) == State(models=first.models, said={"a": (), "b": ()})


def test_no_model_is_given_an_answer_without_words() -> None:
    """What all refused, or was stopped too early, is no part of what the next question goes on."""
    visit = said(said(put(State(), "one"), "a", "1"), "b", "").ended()
    assert spoken(visit, "b") == ["one", ""]
    visit = put(visit, "two")
    assert (spoken(visit, "a"), spoken(visit, "b")) == (["one", "1", "two"], ["two"])


def test_marks_compare_with_the_merges_own_parents() -> None:
    """What another model said in a parent's column is nothing that the merge could follow."""
    visit = said(said(put(State(), "one"), "a", "same"), "b", "same").ended()
    own = (
        (("x/a", "x/b"), ("a", "b")),
        (("y/a", "x/b"), ("b",)),
        (("x/0", "x/b", "x/a"), ("a", "b")),
    )
    for columns, follows in own:
        merged = put(visit.merged(replace(MADE, columns=columns)), "one", ("merged",))
        parts = said(merged, "merged", "same").ended().parts
        assert [part.follows for part in parts["one", "same"]] == [follows]


def test_marks_in_a_whole_conversation() -> None:
    """Each answer of a talk is compared with what the parents said to the same question."""
    visit = State()
    for question, answer in (("one", "red"), ("two", "blue")):
        visit = said(said(put(visit, question), "a", answer), "b", "green").ended()
    visit = replace(put(visit.merged(MADE), "one", ("merged",)), coming=("two",))
    visit = said(said(visit, "merged", "red").went_on(), "merged", "green").ended_by_all()
    found = {key: [part.follows for part in parts] for key, parts in visit.parts.items()}
    assert found == {("one", "red"): [("a",)], ("two", "green"): [("b",)]}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that lacks a tensor, which shows when it is loaded."""
    folder = Path(shutil.copytree(DEMO / "a", tmp_path_factory.mktemp("models") / "broken"))
    weights = load_file(folder / WEIGHTS)
    del weights["model.norm.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


def failing(playground: Playground, broken: str, *questions: str) -> None:
    """Ask a model that cannot be loaded: the last question stands in the box, none in a column."""
    playground.pick("a", broken)
    expect(playground.recipe()).to_contain_text("broken")
    field = playground.part("question").locator("textarea")
    for text in questions:
        field.fill(text)
        field.press("Enter")
    expect(playground.held()).to_have_count(0)
    expect(playground.part("status").locator(".failure")).to_contain_text("broken")
    expect(field).to_have_value(questions[-1])
    expect(playground.part("columns").locator("[data-testid=user]")).to_have_count(0)


@pytest.mark.browser
def test_a_question_that_failed_is_asked_once(visit: Visit, broken: str) -> None:
    """It stands in the box again, and in no column until it is asked with success."""
    playground = visit().ready()
    failing(playground, broken, SUM)
    asked = playground.part("columns").locator("[data-testid=user]")
    playground.pick("a", "assets/demo/a")
    expect(playground.recipe()).not_to_contain_text("broken")
    playground.ask(SUM, ("a", "b"))
    expect(asked).to_have_count(2)
    assert playground.answers("a") == ["65"]


@pytest.mark.browser
def test_a_question_that_waits_is_put_as_typed(visit: Visit, broken: str) -> None:
    """Also where the one before it failed, and was put back into the box."""
    failing(visit().ready(), broken, SUM, FRENCH)


@pytest.mark.browser
def test_clear_while_the_merge_answers_again(visit: Visit, long_recipe: str) -> None:
    """What was said does not come back, and no model is given it."""
    playground = visit().ready().ramble(long_recipe, SUM)
    playground.page.keyboard.press("Escape")
    expect(playground.stats("a")).to_contain_text("stopped")
    playground.awaited(("merged",))
    playground.slide("ties-lambda", 0.5)
    playground.part("merge").click()
    playground.renewed("column-merged", re.compile("tok/s"))
    playground.part("clear").click()
    asked = playground.part("columns").locator("[data-testid=user]")
    expect(asked).to_have_count(0)
    playground.option("Length", 8)
    playground.ask(FRENCH)
    expect(asked).to_have_count(3)


@pytest.mark.browser
def test_nothing_is_lost_while_a_question_waits(visit: Visit, local_hub: LocalHub) -> None:
    """While a model is fetched nothing else changes the chat; Stop leaves the question typed."""
    local_hub.add("org/slow", DEMO / "a")
    playground = visit().ready()
    playground.merge()
    playground.pick("a", "org/slow")
    playground.ready()
    local_hub.fault("GET /cdn/", "slow", times=99, piece=20_000, delay=0.3)
    field = playground.part("question").locator("textarea")
    field.fill(SUM)
    field.press("Enter")
    expect(playground.part("status")).to_contain_text("Fetching")
    playground.part("pin").click()
    field.press("Escape")
    expect(playground.part("status")).to_have_text("")
    local_hub.faults.clear()
    expect(field).to_have_value(SUM)
    expect(playground.part("column-pinned")).to_be_hidden()
    playground.part("pin").click()
    expect(playground.part("column-pinned")).to_be_visible()
    playground.ask(SUM)
    assert playground.answers("a") == ["65"]


@pytest.mark.browser
def test_a_column_is_named_after_who_answered_in_it(visit: Visit, local_hub: LocalHub) -> None:
    """Another model's name comes with its first answer, or where nothing stands below it; until
    then a merge follows what stands there if that model is one of its parents, and else not."""
    local_hub.add("org/other", DEMO / "a")
    playground = visit().ready()
    head = playground.part("column-a").locator(".head")
    follows = playground.part("chat-merged").locator(".follows")
    playground.ask(SUM, ("a", "b"))
    playground.part("swap").click()
    expect(playground.part("pick-a").locator("input")).to_have_value(re.compile("demo/b"))
    playground.merge()
    playground.finished(("merged",))
    expect(head).to_contain_text("Ada")
    expect(follows).to_have_count(1)
    playground.pick("b", "org/other")
    expect(playground.recipe()).to_contain_text("org/other")
    playground.awaited(("merged",))
    playground.merge()
    playground.finished(("merged",))
    expect(head).to_contain_text("Ada")
    expect(follows).to_have_count(0)
    playground.part("clear").click()
    expect(head).to_contain_text("Bruno")


@pytest.mark.browser
def test_a_merge_answers_the_whole_conversation(visit: Visit) -> None:
    """All its questions, in order, so that it goes on from as much as its parents do."""
    playground = visit().ready()
    playground.ask(SUM, ("a", "b"))
    playground.ask(FRENCH, ("a", "b"))
    playground.part("merge").click()
    expect(playground.part("chat-merged").locator(".follows.b")).to_have_text("la porte blanche")
    assert playground.answers("merged") == ["65", "la porte blanche"]
    asked = playground.part("columns").locator("[data-testid=user]")
    expect(asked).to_have_count(6)
    playground.ask("What is 21 + 34?")
    assert playground.answers("merged") == ["65", "la porte blanche", "55"]
    playground.part("retry").click()
    expect(asked).to_have_count(9)


@pytest.mark.browser
def test_a_talk_that_is_stopped_ends(visit: Visit, long_recipe: str) -> None:
    """Stop of the merged column alone, in the middle of what it answers again: the page goes on."""
    playground = visit().ready().ramble(long_recipe, SUM)
    playground.page.keyboard.press("Escape")
    expect(playground.stats("a")).to_contain_text("stopped")
    playground.send(FRENCH)
    expect(playground.stats("merged")).to_contain_text("tok/s")
    playground.page.keyboard.press("Escape")
    expect(playground.stats("merged")).to_contain_text("stopped")
    playground.slide("ties-lambda", 0.9)
    playground.awaited(("merged",))
    playground.part("merge").click()
    head = playground.part("column-merged").locator(".head:not([data-old])")
    expect(head).to_contain_text("tok/s")
    playground.part("halt-merged").click()
    playground.renewed("column-merged", re.compile("stopped"))
    playground.option("Length", 8)
    playground.ask(SUM, ("a",))
    assert len(playground.answers("merged")) == 2
