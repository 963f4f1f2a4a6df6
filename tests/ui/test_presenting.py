"""A link fixes the recipe for a class: read-only until made one's own, and what was kept stays."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect

from merging.recipe import Recipe
from merging.ui.presets import presets
from tests.hub import LocalHub
from tests.ui.models import TIES
from tests.ui.playground import START, Playground
from tests.ui.running import App

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
SWITCHED = (
    "#pick-a input", "#pick-base input", "#ties-lambda input[type=number]",
    "#ties-density-b input[type=range]", "#ties-variant input >> nth=0", "#method input >> nth=0",
    "#preset input >> nth=0", "#swap", "#use",
)  # fmt: skip
"""Some of what changes the recipe, of each kind."""
OUTER = """<script>told = []; onmessage = ({data}) => {
    if (data.queryString !== undefined) told.push(data);
}</script><iframe src="INNER" width="1400" height="900"></iframe>"""
"""The page of a Space, which keeps what its frame says of the address."""


def link(scale: float) -> str:
    text = TIES.replace("lambda: 1.0", f"lambda: {scale}")
    code = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    return f"/?recipe={code}&class=1"


def scale(playground: Playground, value: str) -> None:
    field = playground.part("ties-lambda").locator("input[type=number]")
    expect(field).to_have_value(value)


def fixed(playground: Playground) -> Playground:
    """Wait until all that changes the recipe is switched off."""
    playground.unfold("Recipe")
    for part in SWITCHED:
        expect(playground.page.locator(part)).to_be_disabled()
    expect(playground.recipe()).to_have_attribute("contenteditable", "false")
    return playground


@pytest.mark.parametrize("width", [1440, 390])
def test_read_only_but_merged_and_asked(visit: Visit, width: int) -> None:
    """Nothing of the recipe can be changed; a merge and a question work as ever."""
    playground = fixed(visit(link(0.6), width).ready())
    scale(playground, "0.6")
    expect(playground.part("fixed")).to_contain_text("fixed for all")
    playground.merge()
    playground.send("What is 38 + 27?")
    playground.page.locator("#column-merged .stats").get_by_text("tokens").wait_for()
    expect(playground.part("chat-merged")).to_contain_text(re.compile(r"\d"))


def test_a_reload_is_fixed_again_and_ones_own_recipe_is_still_there(visit: Visit) -> None:
    playground = visit().ready()
    page = playground.page
    playground.slide("ties-lambda", 0.7)
    page.wait_for_timeout(3000)  # the browser's store is a round trip away
    own = page.url
    page.goto(own.rstrip("/") + link(0.6))
    fixed(playground)
    playground.option("Temperature", 0.5)
    page.wait_for_timeout(3000)
    page.reload()
    fixed(playground)
    scale(playground, "0.6")
    page.goto(own)
    scale(playground.ready(), "0.7")
    expect(playground.part("fixed")).to_have_count(0)
    playground.unfold("Settings")
    expect(page.get_by_label("number input for Temperature")).to_have_value("0.5")


def test_ones_own_copy_by_keyboard(visit: Visit) -> None:
    """It is what was fixed, can be changed, and is what a reload brings."""
    playground = fixed(visit(link(0.6)).ready())
    page = playground.page
    playground.part("own").focus()
    page.keyboard.press("Enter")
    expect(playground.part("fixed")).to_have_count(0)
    for part in SWITCHED:
        expect(page.locator(part)).to_be_enabled()
    assert "recipe" not in page.url and "class" not in page.url
    scale(playground, "0.6")
    page.wait_for_timeout(3000)
    page.reload()
    scale(playground.ready(), "0.6")
    playground.slide("ties-lambda", 0.8)
    expect(playground.part("fixed")).to_have_count(0)


def test_a_space_is_told_that_its_address_has_changed(app: App, browser: Browser) -> None:
    """Inside the Hub's page, a reload keeps one's own copy: the outer address says so as well. In
    such a frame the browser keeps nothing, of which gradio complains, and the page works all the
    same.
    """
    inner = app.url + link(0.6) + "&__theme=light"
    outer = OUTER.replace("INNER", inner.replace("&", "&amp;"))
    with browser.new_context(permissions=["local-network-access"]) as context:
        page = context.new_page()
        page.route("https://huggingface.co/**", lambda route: route.fulfill(
            body=outer, content_type="text/html"))  # fmt: skip
        page.goto("https://huggingface.co/spaces/someone/merging")
        own = page.frame_locator("iframe").locator("#own")
        own.click(timeout=START)
        page.wait_for_function("told.length")
        assert page.evaluate("told") == [{"queryString": ""}]


def test_the_link_is_copied(visit: Visit) -> None:
    """It carries the recipe, with the commits of its models if they are on the Hub."""
    playground = visit().ready()
    page = playground.page
    playground.slide("ties-lambda", 0.7)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.part("class-link").click()
    expect(playground.part("recipe-status")).to_contain_text("Link copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    playground.paste("no recipe")
    expect(playground.part("recipe-status").locator(".failure")).to_be_visible()
    page.goto(copied)
    scale(fixed(playground), "0.7")


def test_the_link_pins_its_models(visit: Visit) -> None:
    playground = visit().ready()
    page = playground.page
    playground.forget("li", "notes")
    playground.pick("a", "org/a")
    playground.renewed("notes", re.compile("Same architecture"))
    expect(playground.recipe()).to_contain_text("org/a")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.part("class-link").click()
    expect(playground.part("recipe-status")).to_contain_text("Link copied")
    code = page.evaluate("navigator.clipboard.readText()").partition("recipe=")[2].partition("&")[0]
    text = base64.urlsafe_b64decode(code + "=" * (-len(code) % 4)).decode()
    names = Recipe.from_yaml(text).names()
    assert any(re.fullmatch("org/a@[0-9a-f]{40}", name) for name in names)


@pytest.mark.parametrize("query", ["", "&class=1"])
def test_a_link_asks_no_hub(visit: Visit, local_hub: LocalHub, query: str) -> None:
    """Not even one that carries a preset's recipe: its check waits for a click."""
    text = next(p.text for p in presets() if "assets/demo" not in p.text)
    code = base64.urlsafe_b64encode(text.encode()).decode()
    before = len(local_hub.requests())
    notes = visit(f"/?recipe={code}{query}").part("notes")
    expect(notes).to_contain_text("Not checked yet")
    assert len(local_hub.requests()) == before


def test_a_broken_link_fixes_nothing(visit: Visit) -> None:
    code = base64.urlsafe_b64encode(b"merge_methods: ties\n").decode()
    playground = visit(f"/?recipe={code}&class=1")
    expect(playground.page.locator(".failure").first).to_contain_text("merge_method")
    expect(playground.part("pick-a").locator("input")).to_be_enabled()
    expect(playground.part("fixed")).to_have_count(0)
