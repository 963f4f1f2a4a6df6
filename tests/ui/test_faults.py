"""A bug in the middle of anything: it is logged, the page says so, and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from merging.ui import asking, examining, jobs, kept, sheet
from merging.ui.errors import FAULT, Handler
from merging.ui.page import Page
from merging.ui.settings import idle
from merging.ui.turn import in_turn
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
