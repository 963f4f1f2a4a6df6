"""A bug in the middle of anything: it is logged, the page says so, and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from merging import gpu
from merging.chat import Reply
from merging.errors import MergeError
from merging.ui import asking, comparing, examining, jobs, kept, sheet, turn
from merging.ui.errors import FAULT, Handler
from merging.ui.jobs import Made
from merging.ui.page import Page
from merging.ui.settings import idle
from merging.ui.transcript import Exchange
from merging.ui.turn import in_turn
from merging.ui.visit import CLEARED, Visit
from merging.ui.visitor import Visitor
from tests.ui.models import NAMES, TIES

SUM = "What is 38 + 27?"


def values(page: Page) -> dict[Any, Any]:
    """What a visitor's page holds who has written a question."""
    found = {part: part.value for part in page.asking()}
    found |= {page.form.pickers[slot]: f"assets/demo/{slot}" for slot in NAMES}
    return found | {page.recipe: TIES, page.question: SUM, page.rows: sheet.rows([(SUM, "65")])}


def broken(*_: Any) -> Any:
    raise OSError("no such luck")


def breaking(*given: Any) -> Iterator[Any]:
    """The same once it is gone through, as for all that takes its time."""
    yield broken(*given)


def after(page: Page, handler: Handler, given: dict[Any, Any]) -> dict[Any, Any]:
    """What the page shows once a handler has ended."""
    shown = {**given}
    for updates in handler(page, Visitor(folders=True, session="one"), given):
        shown |= updates
    return shown


def begun() -> Visit:
    """A visit whose merge has just begun to answer the first of two questions."""
    visit = Visit()
    for question in ("one", "two"):
        visit = visit.put(Exchange(question, {}, {"a": "x/a"}, {}), ("a",), None)
        visit = visit.replied(Reply("a", question, 1, 0.1, 1.0, "end of text")).ended()
    visit = visit.merged(Made("0", "", "TIES", ("x/a", "x/b"), {}))
    visit = visit.put(Exchange("one", {}, {}, visit.merges), ("merged",), None)
    return replace(visit, coming=("two",))


def test_clear_just_as_a_merge_begins_to_answer(page: Page) -> None:
    """The merge hears of it, though it was still being made when Clear was pressed."""
    visit = begun()
    given = values(page) | {page.visit: visit}
    assert not after(page, comparing.clear, given)[page.visit].said
    assert CLEARED in visit.stops


def test_clear_of_a_page_at_rest_marks_nothing(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """What begins right after it, and fails, would else leave the page as it was then: merging."""
    monkeypatch.setattr(comparing, "SETTLING", 0)
    given = values(page)
    after(page, comparing.settle_cleared, given)
    assert not given[page.visit].stops


def test_what_fails_after_some_have_begun_is_asked_by_retry(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question stands in the columns that answered: in the box it would be put twice."""

    def partly(_: gpu.Job) -> Iterator[gpu.Event]:
        yield Reply("a", "6", 1, 0.1, 1.0)
        raise MergeError("The other one is broken.")

    monkeypatch.setattr(jobs, "run", partly)
    shown = after(page, asking.ask, values(page))
    assert "is broken" in shown[page.status] and shown[page.question] == ""
    visit = idle(page, shown)
    assert visit.asked == SUM and visit.last("a") == SUM and not visit.last("b")


def test_a_page_that_waits_for_another_tab_takes_no_votes(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written down meanwhile would be overwritten by what began before it."""
    monkeypatch.setattr(turn, "EVERY", 0)
    monkeypatch.setattr(jobs, "make", breaking)
    one, other = (Visitor(folders=True, account="me", session=name) for name in ("1", "2"))
    given, shown = values(page), {}
    with page.pending.request(one, waits=False):
        waits = in_turn("progress", asking.merge, holds={"merging": True})(page, other, given)
        for updates in (next(waits), next(waits)):
            shown |= updates
        assert turn.BEFORE in shown[page.progress]
        with pytest.raises(MergeError, match="A merge is being made"):
            shown[page.visit].ready()
    for updates in waits:
        shown |= updates
    assert idle(page, {**given, **shown}) == given[page.visit] and FAULT in shown[page.progress]


@pytest.mark.parametrize(
    ("handler", "where", "module", "name"),
    [
        (asking.merge, "progress", jobs, "make"), (asking.merge, "progress", kept, "keep"),
        (asking.merge, "progress", jobs, "run"), (asking.ask, "status", jobs, "job_of"),
        (asking.ask, "status", jobs, "run"), (examining.run, "sheet_status", jobs, "job_of"),
        (examining.run, "sheet_status", jobs, "run"),
    ],
)  # fmt: skip
def test_nothing_stays_under_way(  # noqa: PLR0913  # four of them say what breaks where
    page: Page, handler: Handler, where: str, module: ModuleType, name: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("MERGING_HOME", str(tmp_path))
    monkeypatch.setattr(module, name, broken if module is kept else breaking)
    given = values(page)
    shown = {**given}
    for updates in in_turn(where, handler)(page, Visitor(folders=True, session="one"), given):
        shown |= updates
    assert FAULT in shown[getattr(page, where)]
    assert "no such luck" in caplog.text
    assert idle(page, shown)  # or it refuses whatever is pressed next
    assert shown[page.question] == SUM
    assert not page.pending.requests
