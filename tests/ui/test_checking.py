"""The line beneath a merge that says whether it works, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from merging.sanity import Verdict
from merging.ui import look
from tests.ui.models import TIES
from tests.ui.playground import Playground

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
FAR = TIES.replace("lambda: 1.0", "lambda: 8.0")


def test_a_line_beneath_every_merge(visit: Visit) -> None:
    """Green for a good merge; red for one that went too far, with its cause; gone as the next one
    begins, and green again after it."""
    playground = visit().ready()
    line = playground.part("sanity")
    playground.merge()
    expect(line.locator("li.green")).to_contain_text("It works", timeout=60_000)
    expect(line).to_be_visible()
    playground.paste(FAR)
    expect(playground.part("recipe-status")).to_contain_text("in use")
    playground.merge()
    expect(line.locator("li.red")).to_contain_text("step is too long", timeout=60_000)
    expect(line.locator("code")).to_have_text("lambda")
    playground.paste(TIES)
    playground.merge()
    expect(line.locator("li.green")).to_contain_text("It works", timeout=60_000)


def test_no_line_where_nothing_was_merged(visit: Visit) -> None:
    """A merge that fails has its own sentence, and no verdict on the one before it."""
    playground = visit().ready()
    playground.merge()
    expect(playground.part("sanity").locator("li")).to_have_count(1, timeout=60_000)
    playground.paste(TIES.replace("assets/demo/b", "assets/demo/none"))
    playground.part("merge").click()
    expect(playground.part("progress").locator(".failure")).to_contain_text("none")
    playground.page.wait_for_timeout(1500)
    assert playground.part("sanity").inner_text().strip() == ""


def test_stop_leaves_no_line_that_waits(visit: Visit, long_recipe: str) -> None:
    """Stopped in the answer after its merge, the merge has its verdict all the same, or none."""
    playground = visit().ready().ramble(long_recipe, "What is 38 + 27?")
    playground.part("stop").click()
    expect(playground.stats("merged")).to_contain_text("stopped")
    playground.merge()
    expect(playground.stats("merged")).to_contain_text("tok/s")
    playground.part("stop").click()
    expect(playground.stats("merged")).to_contain_text("stopped")
    line = playground.part("sanity")
    expect(line).not_to_contain_text(re.compile("Checking"), timeout=60_000)


def test_what_models_are_called_is_escaped() -> None:
    """A folder's name may hold anything, and is text in the page."""
    found = Verdict(False, "It has hardly anything of <img src=x>: raise `density`.", {})
    shown = look.verdict(found)
    assert "<img" not in shown and "&lt;img" in shown and "<code>density</code>" in shown
