"""What the page says that clicks will ask of a visitor's GPU time: its handlers, as functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from merging import gpu
from merging.blocks import returned
from merging.chat import Reply
from merging.errors import MergeError
from merging.nexttoken import Inspection
from merging.recipe import Recipe
from merging.ui import asking, choosing, comparing, jobs, look, pricing, recalling, sweeping
from merging.ui.errors import Handler
from merging.ui.page import Page
from merging.ui.settings import names, question_of
from merging.ui.transcript import Exchange
from merging.ui.visitor import Visitor
from tests.ui.models import TIES

VISITOR = Visitor(folders=True)
SLERP = Recipe.from_yaml(
    "merge_method: slerp\nmodels:\n- model: assets/demo/a\n- model: assets/demo/b\n"
    "base_model: assets/demo/a\nparameters: {t: 0.5}\n"
).to_yaml()
AWAY = TIES.replace("assets/demo/", "somebody/")


@pytest.fixture
def values(page: Page, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """Of a page that has just been opened, where seconds are granted."""
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    states = {page.visit, page.sheet, page.pins, page.sizes, page.merges, page.judged}
    inputs = {*page.asking(), *page.counted(), *states}
    return {part: part.value for part in inputs}


def done(updates: Iterator[Any], values: dict[Any, Any]) -> list[Any]:
    """All updates of a handler, which are also put into the values."""
    every = list(updates)
    for each in every:
        for part, value in each.items():
            if isinstance(value, dict) and value.get("__type__") == "update":
                value = value.get("value", values.get(part))
            values[part] = value
    return every


def told(page: Page, values: dict[Any, Any]) -> str:
    (update,) = pricing.show(page, VISITOR, values)
    return str(update[page.price])


def job(page: Page, values: dict[Any, Any]) -> gpu.Job:
    """Whoever would answer a question, without one."""
    steps = jobs.job_of(names(page, values), values[page.visit].merges, VISITOR)
    return returned(steps)


def clicks(page: Page, values: dict[Any, Any]) -> dict[str, gpu.Job]:
    """The jobs of clicks, by what they are called."""
    asked, tokens = job(page, values), values[page.tokens]
    talks = dict.fromkeys(asked.answering, ({"role": "user", "content": "?"},))
    question = question_of(page, values, talks)
    silent = dict.fromkeys(asked.answering, ())
    looking = Inspection(silent, "x" * pricing.CHARACTERS * tokens, gpu.MERGED)
    return {
        "Ask, Retry or New seed": replace(asked, questions=(question,)),
        "question sheet": replace(asked, questions=(question,) * 2),
        "looking into an answer": replace(asked, inspection=looking),
    }


def check(page: Page, values: dict[Any, Any], text: str) -> None:
    done(choosing.open_recipe(page, VISITOR, {page.recipe: text}), values)


def merge(page: Page, values: dict[Any, Any]) -> None:
    done(asking.merge(page, VISITOR, values), values)


def test_a_click_is_said_to_ask_for_what_its_job_asks(page: Page, values: dict[Any, Any]) -> None:
    """Whoever answers is counted: the parents, the merge, a pinned merge of other models, the base;
    and what is set."""
    values[page.rows] = [["one?", ""], ["", ""], ["two?", "2"]]

    def agree() -> int:
        needed, *_ = gpu._needs(job(page, values))  # the files have headers besides
        assert 0 <= needed - pricing._asked(page, values).size < needed / 50
        found = {name: gpu.seconds(asked) for name, asked in clicks(page, values).items()}
        assert all(f"{name} {seconds} s" in told(page, values) for name, seconds in found.items())
        return found["Ask, Retry or New seed"]

    values[page.tokens] = 256
    check(page, values, SLERP)
    parents = agree()
    merge(page, values)
    merged = agree()
    done(comparing.pin(page, VISITOR, values), values)
    check(page, values, TIES)
    merge(page, values)
    pinned = agree()
    values[page.show_base] = True
    everybody = agree()
    assert parents < merged < pinned < everybody
    done(comparing.unpin(page, VISITOR, values), values)
    assert agree() == pinned
    values[page.tokens] = 1024
    assert agree() == gpu.LONGEST


def test_a_merge_and_a_sweep(page: Page, values: dict[Any, Any]) -> None:
    """Of the recipe and its base, whoever answers; and of all that the merge answers again."""
    values[page.rows], values[page.count] = [["What is 38 + 27?", "65"], ["Who are you?", "Ada"]], 5
    check(page, values, TIES)
    recipe = Recipe.from_yaml(TIES)
    for tokens, count in ((64, 0), (512, 3)):
        values[page.tokens], values[page.talk] = tokens, (count, 0)
        steps = jobs.make(recipe, VISITOR)
        made = returned(steps)[1]
        alone = {gpu.MERGED: ({"role": "user", "content": "?"},)}
        question = question_of(page, values, alone)
        made = replace(made, questions=(question,) * count, check=True)
        assert f"Merge {gpu.seconds(made)} s" in told(page, values)
        recipes = dict.fromkeys(map(float, range(5)), recipe)
        swept = returned(jobs.sweep(recipe, recipes, sweeping.exam_of(page, values), VISITOR))[1]
        said = f"sweep {gpu.seconds(swept)} s"
        if tokens == 512:
            said = "sweep 120 s or more, too much for one click"
        assert f" · {said}." in told(page, values)
    values[page.rows] = [["Who are you?", ""]]
    assert "sweep" not in told(page, values)


def test_a_conversation_counts(
    page: Page, values: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a merge has answered is answered again by the next, and is read by who looks into it."""
    monkeypatch.setattr(gpu, "LONGEST", 1000)
    visit = values[page.visit]
    for question in ("a" * 900, "two", "three"):
        visit = visit.put(Exchange(question, {}, {"a": "x/a"}, {}), ("a",), None)
        visit = visit.replied(Reply("a", "yes", 1, 0.1, 1.0, "end of text")).ended()
    check(page, values, TIES)
    values |= {page.visit: visit, page.tokens: 64, page.again: True}
    merge(page, values)
    longest = max(sum(len(m["content"]) for m in said) for said in values[page.visit].said.values())
    assert longest > 900 and values[page.talk] == (3, longest)
    asked = job(page, values)
    talks = dict.fromkeys(asked.answering, ({"role": "user", "content": "?" * longest},))
    looking = Inspection(talks, "x" * pricing.CHARACTERS * 64, gpu.MERGED)
    seconds = gpu.seconds(replace(asked, inspection=looking))
    assert f"looking into an answer {seconds} s" in told(page, values)


@pytest.mark.parametrize("again", [True, False])
def test_an_earlier_merge(
    page: Page, values: dict[Any, Any], monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Once it is chosen it has its price, whatever is in the form: that of what it would answer.
    Its models stay priced while it becomes the merged model."""
    values |= {page.question: "Who are you?", page.tokens: 8, page.again: again}
    check(page, values, TIES)
    merge(page, values)
    done(recalling.note(page, VISITOR, values), values)
    done(asking.ask(page, VISITOR, values), values)
    check(page, values, SLERP)
    merge(page, values)
    check(page, values, AWAY)
    assert told(page, values) == look.UNPRICED
    (past,) = values[page.past]
    values[page.listing] = past["id"]
    ran: list[gpu.Job] = []

    def recorded(job: gpu.Job) -> Iterator[gpu.Event]:
        ran.append(job)
        yield from ()

    def asked(click: Handler) -> list[str]:
        ran.clear()
        updates = done(click(page, VISITOR, values), {**values})
        assert all(each.get(page.sizes, past["sizes"]) == past["sizes"] for each in updates)
        return [f"the chosen merge {gpu.seconds(job)} s" for job in ran]

    monkeypatch.setattr(jobs, "run", recorded)

    for values[page.tokens] in (64, 512):
        pinned, chatted = asked(recalling.pin), asked(recalling.chat)
        assert (len(pinned), len(chatted)) == (again, 1)
        said = [*(f"pinning {each}" for each in pinned), f"chatting with {chatted[0]}"]
        assert f"GPU time: {' · '.join(said)}." in told(page, values)


def test_nothing_is_told_of_another_recipe(page: Page, values: dict[Any, Any]) -> None:
    """Models that were not checked, or whose check fails, have no price, and not the last one's."""
    check(page, values, TIES)
    assert "Merge" in told(page, values)
    check(page, values, AWAY)
    assert "Not checked yet" in values[page.notes]
    assert told(page, values) == look.UNPRICED
    check(page, values, TIES)
    wrong = TIES.replace("assets/demo/b", "assets/demo/missing")
    done(choosing.check(page, VISITOR, {page.recipe: wrong}), values)
    assert told(page, values) == look.UNPRICED


def test_a_merge_has_its_models_priced_before_the_device_is_asked(
    page: Page, values: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the recipe came by a link, and where no GPU is granted then."""

    def refused(_: gpu.Job) -> Iterator[gpu.Event]:
        assert values[page.sizes]
        raise MergeError("No GPU was free: press again in a minute.")
        yield

    monkeypatch.setattr(jobs, "run", refused)
    values[page.recipe] = TIES
    for updates in asking.merge(page, VISITOR, values):
        values |= updates
    assert "No GPU was free" in values[page.progress]
    assert "Merge" in told(page, values)
