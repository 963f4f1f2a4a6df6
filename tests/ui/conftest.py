"""One app for all tests of the page and its endpoints, a browser to look at it, and its parts."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator

import gradio as gr
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from merging.ui.layout import layout
from merging.ui.page import Page
from tests.hub import LocalHub
from tests.ui.models import DEMO, NAMES, recipe_of, talkative
from tests.ui.playground import Playground
from tests.ui.running import App, running

PATIENCE = 30_000
"""Milliseconds for what the page is waited for: a busy machine has taken six seconds to show it."""
expect.set_options(timeout=PATIENCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What fails in a browser is tried once more, and counted as a rerun: app, browser and test
    share the cores, and one of them may come late once."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def local_hub() -> Iterator[LocalHub]:
    """A Hub that has the demo models as `org/base`, `org/a` and `org/b`."""
    with LocalHub() as hub:
        for name in NAMES:
            hub.add(f"org/{name}", DEMO / name)
        yield hub


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory, local_hub: LocalHub) -> Iterator[App]:
    """The app in its own process, with empty folders of its own and a Hub on this machine."""
    home = tmp_path_factory.mktemp("app")
    with running(home, HF_ENDPOINT=local_hub.url, HF_HUB_DISABLE_XET="1") as started:
        yield started


@pytest.fixture(scope="module")
def page() -> Page:
    """The page's parts, for handlers, which are functions of them and their values; made in a loop:
    gradio would begin one of its own, and leave it open."""

    async def made() -> Page:
        with gr.Blocks():
            return layout(lambda _: True)

    return asyncio.run(made())


@pytest.fixture(scope="session")
def long_recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recipe over models on this machine that never end an answer by themselves."""
    return recipe_of(talkative(tmp_path_factory.mktemp("talkative")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or "/usr/bin/chromium",
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(app: App, browser: Browser) -> Iterator[Callable[..., Playground]]:
    """Opens the page as a new visitor does; fails the test for any error on the console."""
    contexts, errors = [], []

    def opened(query: str = "", width: int = 1440) -> Playground:
        context = browser.new_context(viewport={"width": width, "height": 1000})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto(app.url + query)
        return Playground(page)

    yield opened
    for context in contexts:
        context.close()
    assert errors == []
