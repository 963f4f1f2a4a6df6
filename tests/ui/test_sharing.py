"""Several people at one app: nobody is starved by long answers, and who must wait is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gradio_client import Client
from playwright.sync_api import expect

from merging.ui.api import ASKING
from tests.ui.playground import Playground
from tests.ui.running import App, connected

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
SUM = "What is 38 + 27?"


@contextmanager
def rambling(app: App, recipe: str, count: int) -> Iterator[list[Any]]:
    """So many answers of a thousand tokens under way, until the block ends."""
    with connected(app) as client:
        made = client.predict(recipe, api_name="/merge")["merge"]
        jobs = [_long(client, made) for _ in range(count)]
        try:
            yield jobs
        finally:
            for job in jobs:
                job.cancel()


def _long(client: Client, made: str) -> Any:
    return client.submit(made, SUM, 1024, api_name="/chat")


def test_a_short_question_need_not_wait_for_long_answers(
    app: App, visit: Visit, long_recipe: str
) -> None:
    """It is answered while the answers that were asked for before it still grow."""
    playground = visit().ready()
    with rambling(app, long_recipe, 3) as jobs:
        playground.ask(SUM, ("a", "b"))
        assert not any(job.done() for job in jobs)
    assert playground.answers("a") == ["65"]


def test_who_waits_is_told_the_place(app: App, visit: Visit, long_recipe: str) -> None:
    """With as many questions under way as are taken at once, the next stands in a queue, and says
    where; stopping takes it out."""
    playground = visit().ready()
    limit = ASKING["concurrency_limit"]
    with rambling(app, long_recipe, limit + 1) as jobs:
        for _ in range(300):
            if sum(bool(job.outputs()) for job in jobs) == limit:
                break
            playground.page.wait_for_timeout(100)
        playground.part("question").locator("textarea").fill(SUM)
        playground.part("ask").click()
        expect(playground.part("status")).to_contain_text(re.compile(r"queue: \d/\d"))
        playground.part("stop").click()
        expect(playground.part("status")).not_to_contain_text("queue")
    playground.ask(SUM, ("a", "b"))
