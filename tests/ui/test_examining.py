"""The question sheet in a real browser: asked, scored, stopped, pasted into and saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.ui.playground import Playground

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
SUM = "What is 38 + 27?"
KEPT = "localStorage.getItem('merge-playground')"
"""What the browser has kept so far."""


def opened(visit: Visit, width: int = 1440) -> Playground:
    playground = visit(width=width).ready()
    playground.unfold("Question sheet")
    expect(cell(playground, 0, 0)).to_have_text(SUM)
    return playground


def cell(playground: Playground, row: int, column: int) -> Locator:
    """A cell of the questions."""
    at = f"[data-testid=cell-{row}-{column}] span.text"
    return playground.part("sheet-rows").locator(at)


def answers(playground: Playground, column: int) -> list[str]:
    """A column of the answers, from its head to its score."""
    rows = playground.part("sheet-answers").locator(f"tr > :nth-child({column + 1})")
    return [text.strip() for text in rows.all_inner_texts()]


def paste(playground: Playground, row: int, column: int, text: str) -> None:
    """Copy a text, and paste it where a cell is chosen."""
    playground.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.page.evaluate("text => navigator.clipboard.writeText(text)", text)
    playground.part("sheet-rows").locator(f"[data-testid=cell-{row}-{column}]").click()
    playground.page.keyboard.press("Control+V")


def test_the_demo_sheet(visit: Visit, tmp_path: Path) -> None:
    """Each parent is right where it has the skill, and the merge in both; a merge that comes later
    does not take over its answers, which are saved with its recipe.
    """
    playground = opened(visit)
    playground.part("save-sheet-json").click()
    expect(playground.part("sheet-status").locator(".failure")).to_contain_text("nothing to save")
    playground.run_sheet()
    assert answers(playground, 1)[0] == "◆ A · Ada" and answers(playground, 1)[-1] == "6 of 10"
    assert len(answers(playground, 3)) == 0
    playground.merge()
    playground.run_sheet()
    assert answers(playground, 1)[1::5] == ["✓ 65", "✗ la door blanche", "6 of 10"]
    assert answers(playground, 2)[1::5] == ["✗ 55", "✓ la porte blanche", "6 of 10"]
    assert answers(playground, 3)[1::5] == ["✓ 65", "✓ la porte blanche", "10 of 10"]
    head = answers(playground, 3)[0]
    assert re.fullmatch(r"✦ Merged · TIES \w{8}", head)
    playground.slide("ties-lambda", 0)
    playground.merge()
    assert answers(playground, 3)[0] == head
    saved = json.loads(playground.saved("save-sheet-json", tmp_path / "sheet.json"))
    assert saved["scores"]["merged"] == {"right": 10, "of": 10}
    (recipe,) = saved["recipes"].values()
    assert "lambda: 1.0" in recipe["recipe"]
    text = playground.saved("save-sheet-markdown", tmp_path / "sheet.md")
    assert f"| 1 | `{SUM}` | `65` | ✓ `65` | ✗ `55` | ✓ `65` |" in text
    assert "```yaml\n" in text


def test_stop_keeps_what_has_come(visit: Visit, long_recipe: str) -> None:
    """While the sheet runs, the chat waits; Stop leaves what was said, without a mark, and drops
    what waits."""
    playground = opened(visit)
    playground.paste(long_recipe)
    expect(playground.part("recipe-status")).to_contain_text("in use")
    playground.option("Length", 512)
    playground.part("run-sheet").click()
    table = playground.part("sheet-answers")
    expect(table.locator("td").first).to_contain_text(re.compile("65.*"))
    playground.part("question").locator("textarea").fill(SUM)
    playground.part("question").locator("textarea").press("Enter")
    expect(playground.held()).to_contain_text("“Ask” is taken")
    playground.part("merge").click()
    expect(playground.held()).to_contain_text("“Merge” is taken in place of “Ask”")
    playground.part("stop-sheet").click()
    expect(playground.held()).to_have_count(0)
    expect(playground.part("sheet-status")).to_have_text("Stopped.")
    expect(table.locator("small", has_text="stopped").first).to_be_visible()
    expect(table.locator("tbody tr")).to_have_count(10)
    assert answers(playground, 1)[-2:] == ["", answers(playground, 1)[-1]]
    playground.option("Length", 8)
    playground.ask(SUM, ("a", "b"))


def test_the_sheet_waits_for_the_chat(visit: Visit, long_recipe: str) -> None:
    """In the middle of answers it is taken, until Stop; Esc there stops the sheet too."""
    playground = opened(visit).ramble(long_recipe, SUM)
    status = playground.part("sheet-status")
    playground.part("run-sheet").click()
    expect(playground.held()).to_contain_text("“Run the sheet” is taken")
    playground.page.keyboard.press("Escape")
    expect(playground.stats("a")).to_contain_text("stopped")
    playground.part("run-sheet").click()
    expect(status).to_contain_text("Question 1 of 10")
    playground.page.keyboard.press("Escape")
    expect(status).to_have_text("Stopped.", timeout=15_000)


def test_rows_are_pasted_and_kept(visit: Visit) -> None:
    """Cells of a spreadsheet go in from the chosen cell on; a reload keeps them, and another
    preset's questions do not take their place. An eleventh is refused with its number.
    """
    playground = opened(visit)
    before = playground.page.evaluate(KEPT)
    paste(playground, 1, 0, 'Who are you?\tAda | Bruno\n"a\n""b"""\t33\n')
    expect(cell(playground, 1, 0)).to_have_text("Who are you?")
    expect(cell(playground, 2, 0)).to_have_text('a "b"')
    expect(cell(playground, 2, 1)).to_have_text("33")
    playground.page.wait_for_function(f"before => {KEPT} !== before", arg=before)
    playground.page.wait_for_timeout(1000)  # and what follows that
    playground.page.reload()
    playground.ready().unfold("Question sheet")
    expect(cell(playground, 1, 1)).to_have_text("Ada | Bruno")
    expect(cell(playground, 0, 0)).to_have_text(SUM)
    playground.page.locator("#preset label", has_text="SmolLM2").click()
    expect(playground.part("why")).to_contain_text("instruct tune")
    expect(cell(playground, 1, 1)).to_have_text("Ada | Bruno")
    paste(playground, 9, 0, "One?\t1\nTwo?\t2")
    expect(cell(playground, 10, 0)).to_have_text("Two?")
    playground.part("run-sheet").click()
    expect(playground.part("sheet-status").locator(".failure")).to_contain_text("11 questions")


def test_a_preset_brings_its_questions(visit: Visit) -> None:
    """As long as the sheet has none but a preset's."""
    playground = opened(visit)
    playground.page.locator("#preset label", has_text="SmolLM2").click()
    expect(cell(playground, 1, 0)).to_have_text("What is the capital of France?")
    expect(cell(playground, 5, 0)).to_have_text("")


def test_narrow_sheet(visit: Visit) -> None:
    """At 390 pixels answers stand below their question, each with its column; nothing scrolls
    sideways.
    """
    playground = opened(visit, width=390)
    playground.run_sheet()
    assert playground.page.evaluate("document.documentElement.scrollWidth") <= 390
    box = playground.part("sheet-answers").locator(".sheet")
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth")
    cells = box.locator("tbody tr").first.locator("td")
    drawn = "e => getComputedStyle(e, '::before').content"
    assert [cell.evaluate(drawn) for cell in cells.all()] == ['"◆ A "', '"● B "']
    tops = [cell.bounding_box() for cell in cells.all()]
    assert tops[0] and tops[1] and tops[0]["y"] < tops[1]["y"]


def test_a_blind_round_is_not_given_away(visit: Visit) -> None:
    """Before the vote the sheet, which has names, is not run."""
    playground = opened(visit)
    playground.part("blind").locator("input").check()
    playground.send(SUM)
    expect(playground.part("verdict")).to_be_visible(timeout=60_000)
    playground.part("run-sheet").click()
    expect(playground.part("sheet-status").locator(".failure")).to_contain_text("vote first")
