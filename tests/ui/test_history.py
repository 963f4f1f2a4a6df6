"""Earlier merges: what is remembered of them, and what they can be asked, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from merging.recipe import Recipe
from merging.ui import history
from merging.ui.blind import Ballot, Vote
from merging.ui.history import MOST, Past
from merging.ui.jobs import Made
from tests.ui.models import TIES
from tests.ui.playground import Playground

Visit = Callable[..., Playground]
SUM = "What is 38 + 27?"
FRENCH = "How do you say the white door in French?"


def made(number: int, text: str = TIES) -> Made:
    pins = {"assets/demo/a": "assets/demo/a"}
    sizes = {"assets/demo/a": 10**7}
    return Made(f"{number:064x}", Recipe.from_yaml(text).to_yaml(), "TIES", (), pins, sizes)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("lambda: 1.0", "lambda: 1.5", "lambda 1.5"),
        ("density: 0.5", "density: 0.2", "density 0.2"),
        ("normalize: true", "normalize: false", "normalize off"),
        ("normalize: true", "normalize: true, rescale: false", "the same settings"),
        ("demo/b\n", "demo/base\n", "B Mini"),
        ("lambda: 1.0", "lambda: [0, 1]", "lambda 0–1"),
        ("merge_method: ties", "merge_method: ties\nvariant: paper", "variant paper"),
        ("merge_method: ties", "merge_method: other",
         "weight 1, density 0.5, lambda 1, normalize on"),
    ],
)  # fmt: skip
def test_what_differs(old: str, new: str, told: str) -> None:
    """What was changed since the merge before is named, and nothing else."""
    before, after = Recipe.from_yaml(TIES), Recipe.from_yaml(TIES.replace(old, new))
    assert history.differs(after, before) == told
    assert history.differs(before, before) == "the same settings"


def test_one_models_own_is_told_with_its_letter() -> None:
    text = TIES.replace("density: 0.5", "density: 0.2", 1)
    told = history.differs(Recipe.from_yaml(text), Recipe.from_yaml(TIES))
    assert told == "density A 0.2, density B 0.5, no density"


def test_a_merge_is_remembered_once_and_the_oldest_go() -> None:
    """One that is made again moves up with its verdict; at most MOST are kept."""
    pasts: tuple[Past, ...] = ()
    for number in range(MOST + 5):
        pasts = history.added(pasts, made(number), 1.5, number)
    assert [past.when for past in pasts] == [*range(MOST + 4, 4, -1)]
    pasts = history.judged(pasts, made(10).identity, True)
    pasts = history.added(pasts, made(10), 0.0, 99)
    assert (pasts[0].id, pasts[0].works, pasts[0].seconds) == (made(10).identity, True, 1.5)
    assert len({past.id for past in pasts}) == len(pasts) == MOST
    assert history.added(pasts, made(10), 0.0, 100) == pasts


def test_a_line_has_verdict_age_and_votes() -> None:
    (past,) = history.added((), made(7), 0.25, 1000.0)
    past = replace(past, differs="lambda 1.5", works=False)
    merges = {"merged": made(7), "pinned": made(8)}
    votes = [Vote("?", choice, Ballot(0, ()), {}, merges) for choice in ("merged", "tie", "pinned")]
    told = history.line(past, votes, 1000 + 3 * 3600)
    assert told == (
        "TIES 00000000 · ✗ does not work · lambda 1.5 · 0.25 s · 3 h ago · "
        "best in 1 of 3 blind rounds"
    )


WRONG: tuple[dict[str, Any], ...] = (
    {"when": float("nan")}, {"when": -1}, {"when": 10**400}, {"pins": []}, {"works": "yes"},
    {"recipe": None}, {"more": 1}, {"sizes": {"a": "5"}}, {"sizes": {"a": -1}},
)  # fmt: skip


def test_what_the_browser_kept_may_be_anything() -> None:
    """What is no merge is left out, and what is one comes back as it was."""
    pasts = history.added((), made(1), 1.0, 5.0)
    good = asdict(pasts[0])
    kept = [None, "x", {}, *(good | wrong for wrong in WRONG)]
    for one in (None, {}, "x", kept):
        assert history.read(one) == ()
    assert history.read([*kept, good][-MOST:]) == pasts


def _lines(playground: Playground) -> Locator:
    playground.unfold("History")
    return playground.part("listing").locator("label")


@pytest.mark.browser
def test_any_earlier_merge_stands_beside_the_last(visit: Visit) -> None:
    """After three merges the first is pinned beside the third, answers, is voted on and told."""
    playground = visit().ready()
    playground.merge()
    playground.ask(SUM)
    for value in (0.5, 0):
        playground.awaited(("merged",))
        playground.slide("ties-lambda", value)
        playground.merge()
        playground.finished(("merged",))
    lines = _lines(playground)
    expect(lines).to_have_count(3)
    expect(lines.nth(0)).to_contain_text(re.compile(r"TIES \w{8} · ✓ works · lambda 0 · "))
    expect(lines.nth(1)).to_contain_text("lambda 0.5")
    playground.part("pin-past").click()
    expect(playground.part("past-status").locator(".failure")).to_contain_text("Choose a merge")
    first = lines.nth(2)
    first.click()
    playground.part("pin-past").click()
    expect(playground.part("past-status")).to_contain_text("stands beside")
    playground.finished(("pinned",))
    assert playground.answers("pinned") == ["65"] != playground.answers("merged")
    name = first.inner_text()[:13]
    expect(playground.part("column-pinned").locator(".head")).to_contain_text(name)
    playground.part("blind").locator("input").check()
    playground.send(FRENCH)
    expect(playground.part("verdict")).to_be_visible()
    playground.part("pin-past").click()
    expect(playground.part("past-status").locator(".failure")).to_contain_text("vote first")
    playground.part("bad").click()
    expect(first).to_contain_text("best in 0 of 1 blind rounds")


@pytest.mark.browser
def test_an_earlier_visits_merge_is_the_merged_model_again(visit: Visit) -> None:
    """After a reload it is there still; its recipe goes into the form, and it answers; a link
    carries it; it can be forgotten.
    """
    playground = visit().ready()
    playground.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.slide("ties-lambda", 0.7)
    playground.merge()
    lines = _lines(playground)
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text("✓ works")
    playground.slide("ties-lambda", 0.9)
    playground.page.wait_for_timeout(2000)  # the browser's store is a round trip away
    playground.page.reload()
    playground.ready()
    _lines(playground).click()
    playground.part("chat-past").click()
    expect(playground.part("past-status")).to_contain_text("is the merged model")
    expect(playground.part("ties-lambda").locator("input[type=number]")).to_have_value("0.7")
    playground.ask(SUM)
    assert playground.answers("merged") == ["65"]
    playground.part("link-past").click()
    expect(playground.part("past-status")).to_contain_text("Link copied")
    link = playground.page.evaluate("navigator.clipboard.readText()")
    playground.part("forget-past").click()
    expect(playground.part("listing")).to_be_hidden()
    playground.page.goto(link)
    expect(playground.part("ties-lambda").locator("input[type=number]")).to_have_value("0.7")
