"""The page answers before the models' code is there, says so, and lets who asks wait for it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from merging import readiness
from tests.ui.playground import START, Playground
from tests.ui.running import App, running

HEAVY = ("transformers.modeling_utils", "transformers.models.llama.modeling_llama", "accelerate")
"""What models need and the page does not: seconds of imports."""


@pytest.fixture
def unready(tmp_path: Path) -> Iterator[App]:
    """An app whose start goes on until the file `ready` is there."""
    files = {"READY": str(tmp_path / "ready"), "SEEN": str(tmp_path / "seen")}
    with running(tmp_path, ("-m", "tests.ui.unready"), **files) as app:
        yield app


def test_answers_before_the_models_code_is_there(unready: App, tmp_path: Path) -> None:
    """It takes less than three of the processor's seconds beside the imports it cannot avoid."""
    used = unready.processor_seconds()  # it has answered, with the start still under way
    seen = json.loads((tmp_path / "seen").read_text())
    assert not {*HEAVY} & {*seen["modules"]}
    assert used - seen["imports"] < 3


@pytest.mark.browser
def test_the_state_is_shown_and_requests_wait(
    unready: App, tmp_path: Path, browser: Browser
) -> None:
    page = browser.new_page()
    page.set_default_timeout(START)
    page.goto(unready.url)
    playground = Playground(page)
    expect(playground.part("starting")).to_contain_text("Getting ready: the test")
    playground.send("What is 38 + 27?")
    expect(playground.part("status")).to_contain_text("Waiting for the test")
    (tmp_path / "ready").touch()
    playground.finished(("a", "b"))
    assert playground.answers("a") == ["65"]
    expect(playground.part("starting")).not_to_contain_text("Getting")
    playground.merge()
    page.close()


def test_steps_come_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits is told which is under way; one that fails is logged, and ends no other."""
    go, done = threading.Event(), []

    def fail() -> None:
        raise OSError("no disk")

    assert (readiness.doing(), list(readiness.waiting())) == ("", [])
    with caplog.at_level(logging.ERROR):
        readiness.start({"one": go.wait, "two": fail, "three": lambda: done.append(3)})
        for told in readiness.waiting():
            assert told in ("one", "two", "three")
            if told == "one":
                assert not done
                go.set()
    assert done == [3] and go.is_set()
    assert (readiness.doing(), list(readiness.waiting())) == ("", [])
    assert "two" in caplog.text and "no disk" in caplog.text
