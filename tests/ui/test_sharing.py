"""Several people at one app: nobody is starved by long answers, and who must wait is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.ui.playground import Playground
from tests.ui.running import App, connected, running

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
SUM = "What is 38 + 27?"


@contextmanager
def rambling(app: App, recipe: str, count: int) -> Iterator[list[Any]]:
    """So many programs' answers of a thousand tokens under way, until the block ends."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(app)) for _ in range(count)]
        jobs = [client.submit(recipe, SUM, 1024, api_name="/chat") for client in clients]
        for job in jobs:
            stack.callback(job.cancel)
        yield jobs


def test_a_short_question_need_not_wait_for_long_answers(
    app: App, visit: Visit, long_recipe: str
) -> None:
    """It is answered while the answers that were asked for before it still grow."""
    playground = visit().ready()
    with rambling(app, long_recipe, 3) as jobs:
        playground.ask(SUM, ("a", "b"))
        assert not any(job.done() for job in jobs)
    assert playground.answers("a") == ["65"]


def test_who_waits_is_told_the_place(browser: Browser, tmp_path: Path, long_recipe: str) -> None:
    """With as many questions under way as are taken at once, the next stands in a queue, and says
    where; stopping takes it out. Programs have a queue of their own."""
    with running(tmp_path, ("-m", "tests.ui.narrow")) as app:
        pages = [browser.new_page() for _ in range(2)]
        for page in pages:
            page.goto(app.url)
        one, other = (Playground(page).ready() for page in pages)
        one.ramble(long_recipe, SUM)
        other.part("question").locator("textarea").fill(SUM)
        other.part("ask").click()
        expect(other.part("status")).to_contain_text(re.compile(r"queue: \d/\d"))
        with connected(app) as program:
            assert program.predict(long_recipe, SUM, 8, api_name="/chat")["merged"]
        other.part("stop").click()
        expect(other.part("status")).not_to_contain_text("queue")
        one.part("stop").click()
        other.ask(SUM, ("a", "b"))
        for page in pages:
            page.close()
