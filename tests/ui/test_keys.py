"""A whole session by the keyboard alone, in a real browser: no mouse, no script sets the focus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from playwright.sync_api import expect

from tests.ui.playground import DONE, SCORED, Playground

pytestmark = pytest.mark.browser

SUM = "What is 38 + 27?"
FAR = 200
"""Presses of Tab within which everything of the page is reached."""
INSIDE = "(where) => document.activeElement.closest(where) !== null"
RING = """() => {
    const box = document.activeElement, label = box.closest("label");
    const drawn = (part) => part && parseFloat(getComputedStyle(part).outlineWidth) > 0
        && getComputedStyle(part).outlineStyle !== "none";
    return Boolean(drawn(box) || drawn(label) || getComputedStyle(box).boxShadow !== "none");
}"""
"""Whether one can see what has the focus."""


@dataclass(frozen=True)
class Keys:
    """Someone without a mouse."""

    playground: Playground

    def press(self, where: str, key: str = "Enter", step: str = "Tab") -> None:
        """Go on with `step` until the focus is in `where`, see that it is shown, and press."""
        self.reach(where, step)
        self.playground.page.keyboard.press(key)

    def reach(self, where: str, step: str = "Tab") -> None:
        page = self.playground.page
        for _ in range(FAR):
            if self.inside(where):
                break
            page.keyboard.press(step)
        assert self.inside(where), f"{where} is not reached"
        page.wait_for_function(RING)

    def ask(self, question: str, step: str = "Tab") -> None:
        self.reach("#question", step)
        self.playground.page.keyboard.type(question)
        self.playground.page.keyboard.press("Enter")

    def inside(self, where: str) -> bool:
        return bool(self.playground.page.evaluate(INSIDE, where))


def test_a_session_by_keys_alone(visit: Callable[..., Playground]) -> None:
    """Each thing is reached and seen, and what has the focus keeps it when something is drawn."""
    playground = visit().ready()
    keys = Keys(playground)
    _merge_and_ask(playground, keys)
    _compare(playground, keys)
    _look_closer(playground, keys)


def _merge_and_ask(playground: Playground, keys: Keys) -> None:
    """Another preset, its merge, and a question to all."""
    everybody = ("a", "b", "merged")
    keys.press("#preset label:has(input[value='02-demo-slerp'])", "Space")
    expect(playground.part("slerp-t")).to_be_visible()
    keys.press("#merge")
    expect(playground.part("progress")).to_contain_text(DONE)
    assert keys.inside("#merge")
    playground.awaited(everybody)
    keys.ask(SUM)
    playground.finished(everybody)
    assert playground.answers("merged") == ["65"]
    assert keys.inside("#question")


def _compare(playground: Playground, keys: Keys) -> None:
    """The merge pinned, a column enlarged, and a blind vote, with which its button goes."""
    keys.press("#pin", step="Shift+Tab")
    expect(playground.part("column-pinned")).to_be_visible()
    assert keys.inside("#pin")
    keys.press("#wide-a", "Space", step="Shift+Tab")
    expect(playground.part("column-b")).to_be_hidden()
    keys.press("#wide-a", "Space")
    expect(playground.part("column-b")).to_be_visible()
    keys.press("#blind", "Space")
    keys.ask(SUM, step="Shift+Tab")
    expect(playground.part("verdict")).to_be_visible()
    keys.press("#best-1", step="Shift+Tab")
    expect(playground.part("tally")).to_contain_text("tie 0")
    playground.page.wait_for_function(INSIDE, arg="#question")


def _look_closer(playground: Playground, keys: Keys) -> None:
    """Next tokens, the question sheet, and the history."""
    keys.press("#deciding .label-wrap")
    keys.press("#look-into")
    expect(playground.part("bars")).to_contain_text("Token 1")
    assert keys.inside("#look-into")
    keys.press("#token input[type=range]", "ArrowRight")
    expect(playground.part("bars")).to_contain_text("Token 2")
    keys.press("#sheet-box .label-wrap")
    keys.press("#run-sheet")
    expect(playground.part("sheet-status")).to_contain_text(SCORED)
    assert keys.inside("#run-sheet")
    keys.press("#recipe-box .label-wrap")
    keys.press("#history-box .label-wrap")
    keys.press("#listing label", "Space")
    keys.press("#chat-past")
    expect(playground.part("past-status")).to_contain_text("is the merged model")
    assert keys.inside("#chat-past")


def test_larger_text_is_kept(visit: Callable[..., Playground]) -> None:
    """For a projector: answers grow at the press of a key, and what is opened later is as large."""
    playground = visit().ready()
    playground.ask(SUM, ("a", "b"))
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    said = playground.part("chat-a").locator("[data-testid=bot] p").first
    before = said.evaluate(size)
    playground.part("larger").press("Enter")
    assert said.evaluate(size) == 1.25 * before
    other = Playground(playground.page.context.new_page())
    other.page.goto(playground.page.url)
    other.ready()
    field = other.part("question").locator("textarea")
    assert field.evaluate(size) == 1.25 * before
    for _ in range(3):
        other.part("smaller").press("Enter")
    assert field.evaluate(size) == before
