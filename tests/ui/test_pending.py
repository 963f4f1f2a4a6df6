"""One request a person at a time: who is refused, who waits, and whose turn comes when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import pytest

from merging.errors import MergeError
from merging.ui import build, turn
from merging.ui.api import LIMITS
from merging.ui.errors import Updates
from merging.ui.pending import MOST, Pending
from merging.ui.sheet import Sheet
from merging.ui.visit import Visit
from merging.ui.visitor import Visitor

ONE, OTHER = (Visitor(session=session) for session in ("one", "other"))
TABS = [Visitor(session=session, account="alice") for session in ("left", "right", "third")]


@pytest.fixture(scope="module")
def blocks() -> gr.Blocks:
    """The page, built in a loop: gradio would begin one of its own, and leave it open."""

    async def built() -> gr.Blocks:
        return build()

    return asyncio.run(built())


def test_strangers_do_not_wait_for_each_other() -> None:
    pending = Pending()
    with (
        pending.request(ONE, waits=False) as (first, _),
        pending.request(OTHER, waits=False) as (second, _),
    ):
        assert not first() and not second()
    assert not pending.requests


def test_a_pages_second_request_is_refused() -> None:
    """Not so one that changes nothing of the page: it waits, as does one after a Stop."""
    pending = Pending()
    with pending.request(ONE, waits=False):
        with pytest.raises(MergeError, match="press Stop"), pending.request(ONE, waits=False):
            pass
        with pending.request(ONE, waits=True) as (others, _):
            assert others()
        pending.stop(ONE)
        with pending.request(ONE, waits=False) as (others, _):
            assert not others()
    assert not pending.requests


def test_nobody_takes_all_places() -> None:
    """One person's requests are refused before they could fill any queue's places."""
    pending = Pending()
    with ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(pending.request(ONE, waits=True))
        with pytest.raises(MergeError, match="wait for one"), pending.request(ONE, waits=True):
            pass
        stack.enter_context(pending.request(OTHER, waits=True))
    assert not pending.requests
    places = [each["concurrency_limit"] for each in (turn.MERGING, turn.ASKING, turn.LOOKING)]
    assert min(*places, *LIMITS.values()) > MOST


def test_what_waits_for_long_stands_in_nobodys_way(blocks: gr.Blocks) -> None:
    """A look, which may wait for its own page's sweep, files and a push have queues of their own,
    and who waits there is told where that was asked for."""
    ids = {number: getattr(part, "elem_id", None) for number, part in blocks.blocks.items()}
    clicked = {ids[number]: fn for fn in blocks.fns.values() if fn.queue
               for number, event in fn.targets if event == "click"}  # fmt: skip
    waiting = {"look-into": "looked-status", "files": "kept-status", "confirm": "kept-status"}
    for button, where in waiting.items():
        assert [part.elem_id for part in clicked[button].show_progress_on or ()] == [where]
        assert clicked[button].show_progress == "minimal"
    several = ("merge", "ask", *waiting)
    assert len({clicked[button].concurrency_id for button in several}) == len(several)


def test_tabs_of_an_account_take_turns() -> None:
    """In the order in which they asked, whichever way the one before them ends."""
    pending, stacks = Pending(), [ExitStack() for _ in TABS]
    others = [
        stack.enter_context(pending.request(tab, waits=False))[0]
        for stack, tab in zip(stacks, TABS, strict=True)
    ]
    assert [waits() for waits in others] == [False, True, True]
    stacks[0].close()
    assert [waits() for waits in others[1:]] == [False, True]
    pending.stop(TABS[1])
    assert not others[2]()
    stacks[2].close()
    stacks[1].close()
    assert not pending.requests


def page() -> Any:
    return SimpleNamespace(pending=Pending(), visit="visit", sheet="sheet", status="status")


def test_a_handler_begins_when_its_turn_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of it stands where the request was made; a closed one leaves its place."""
    monkeypatch.setattr(turn, "EVERY", 0.0)

    def handler(_page: Any, visitor: Visitor, _values: Any) -> Iterator[Updates]:
        yield {"status": f"begun {visitor.session}"}
        yield {"status": f"ended {visitor.session}"}

    begun, at = turn.in_turn("status", handler), page()
    values = {"visit": Visit(), "sheet": Sheet()}
    left, right = (cast("Any", begun(at, tab, values)) for tab in TABS[:2])
    assert next(left) == {"status": "begun left"}
    for _ in range(3):
        assert "comes first" in next(right)["status"]
    assert "press Stop" in next(begun(at, TABS[0], values))["status"]
    left.close()
    assert [*right] == [{"status": "begun right"}, {"status": "ended right"}]
    assert not at.pending.requests


def test_who_sees_the_end_may_go_on() -> None:
    """The last answer's update ends a request: what comes after it concerns nobody else."""
    shown = [Visit(), replace(Visit(), running=("a",)), Visit()]

    def handler(_page: Any, _visitor: Visitor, _values: Any) -> Iterator[Updates]:
        yield from ({"visit": visit} for visit in shown)
        yield {"status": "late"}

    begun, at, values = (
        turn.in_turn("status", handler),
        page(),
        {"visit": Visit(), "sheet": Sheet()},
    )
    first = begun(at, ONE, values)
    for visit in shown:
        assert at.pending.requests or visit is shown[0]
        assert next(first) == {"visit": visit}
    assert not at.pending.requests
    assert next(begun(at, ONE, values)) == {"visit": shown[0]}
    assert [*first] == [{"status": "late"}]
