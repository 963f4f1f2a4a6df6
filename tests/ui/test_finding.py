"""Finding models in a real browser: lists that follow the typing, relatives, and no network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.hub import LocalHub
from tests.ui.models import DEMO
from tests.ui.playground import Playground
from tests.ui.running import running

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
FAMILY = {
    "kin/mini": ("", 1_234_567, False),
    "kin/mini-chat": ("kin/mini", 45_000, False),
    "kin/mini-code": ("kin/mini", 4_600, True),
    "kin/mini-code-chat": ("kin/mini-code", 300, False),
}


@pytest.fixture(scope="module", autouse=True)
def family(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A base, its tunes and a tune of one of these, on the app's Hub."""
    for id, (base, downloads, gated) in FAMILY.items():
        folder = Path(shutil.copytree(DEMO / "a", tmp_path_factory.mktemp("kin") / "model"))
        (folder / "README.md").write_text(f"---\nbase_model: {base}\n---\n")
        local_hub.add(id, folder, downloads=downloads, gated=gated)


def picker(playground: Playground, slot: str) -> Locator:
    return playground.part(f"pick-{slot}").locator("input")


def lines(playground: Playground, slot: str) -> Locator:
    return playground.part(f"pick-{slot}").locator("[role=option]:visible")


def write(playground: Playground, slot: str, text: str) -> None:
    """Type over what is in a picker, as fast as people do."""
    picker(playground, slot).click()
    playground.page.keyboard.press("Control+A")
    playground.page.keyboard.type(text, delay=40)


def chips(playground: Playground) -> Locator:
    return playground.part("relatives").locator("button")


def test_the_list_follows_the_typing(visit: Visit, local_hub: LocalHub) -> None:
    """What the Hub has comes with size, downloads and access; the text and the list stay."""
    playground = visit().ready()
    before = len(local_hub.requests("GET /api/models$"))
    write(playground, "a", "mini")
    expect(lines(playground, "a")).to_have_text([
        "✓ Mini · assets/demo/base",
        re.compile(r"kin/mini · 1\.0\sM · 1\.2\sM downloads$"),
        re.compile(r"kin/mini-chat · 1\.0\sM · 45\sK downloads$"),
        re.compile(r"kin/mini-code · 1\.0\sM · 4\.6\sK downloads · gated$"),
        re.compile(r"kin/mini-code-chat · 1\.0\sM · 300 downloads$"),
    ])  # fmt: skip
    expect(picker(playground, "a")).to_be_focused()
    expect(picker(playground, "a")).to_have_value("mini")
    playground.page.keyboard.type("-code")
    expect(lines(playground, "a")).to_have_count(2)
    expect(picker(playground, "a")).to_have_attribute("aria-expanded", "true")
    assert len(local_hub.requests("GET /api/models$")) - before < 7  # not one a key
    for _ in range(5):
        playground.page.keyboard.press("Backspace", delay=40)
    expect(lines(playground, "a")).to_have_count(5)


def test_a_click_chooses_the_plain_name(visit: Visit) -> None:
    """What is clicked is in the picker without its figures, in the recipe, and checked."""
    playground = visit().ready()
    write(playground, "b", "mini-chat")
    lines(playground, "b").filter(has_text="45").click()
    expect(picker(playground, "b")).to_have_value("kin/mini-chat")
    expect(playground.recipe()).to_contain_text("model: kin/mini-chat")
    expect(playground.part("notes")).to_contain_text("kin/mini-chat")
    picker(playground, "b").click()
    expect(lines(playground, "b").first).to_contain_text("assets/demo/base")


def test_keys_choose_the_line_that_is_marked(visit: Visit) -> None:
    """The first line is marked after each list; arrows move on from it, and results leave them."""
    playground = visit().ready()
    write(playground, "a", "kin/mini")
    expect(lines(playground, "a").first).to_contain_text("1.2")
    expect(playground.page.locator("#pick-a .active")).to_contain_text("kin/mini · ")
    playground.page.keyboard.press("ArrowDown")
    playground.page.keyboard.press("ArrowDown")
    playground.page.wait_for_timeout(400)
    expect(playground.page.locator("#pick-a .active")).to_contain_text("kin/mini-code · ")
    playground.page.keyboard.press("Enter")
    expect(picker(playground, "a")).to_have_value("kin/mini-code")
    expect(playground.recipe()).to_contain_text("model: kin/mini-code")


def test_words_in_any_order_are_listed(visit: Visit) -> None:
    playground = visit().ready()
    write(playground, "a", "chat mini-code")
    expect(lines(playground, "a")).to_have_count(1)
    playground.page.keyboard.press("ArrowDown")
    expect(lines(playground, "a")).to_have_count(1)
    playground.page.keyboard.press("Enter")
    expect(picker(playground, "a")).to_have_value("kin/mini-code-chat")


def test_a_name_written_out_is_taken_as_written(visit: Visit) -> None:
    """Never for a longer one that happens to be listed."""
    playground = visit().ready()
    ends = {"kin/mini-cod": "Enter", "kin/mini@main": "Enter", "kin/mini-code": "Enter",
            "kin/min": "Tab"}  # fmt: skip
    for name, end in ends.items():
        write(playground, "a", name)
        expect(lines(playground, "a").first).to_contain_text(name)
        playground.page.keyboard.press(end)
        expect(picker(playground, "a")).to_have_value(name)
        expect(playground.recipe()).to_contain_text(re.compile(rf"model: {name}(?![\w-])"))


def test_relatives_are_offered_and_taken(visit: Visit) -> None:
    """One click sets the base, another the next free picker, as if they had been chosen there."""
    playground = visit().ready()
    playground.pick("a", "kin/mini-chat")
    expect(chips(playground)).to_have_text(["○ kin/mini", "● kin/mini-code"])
    chips(playground).first.click()
    expect(picker(playground, "base")).to_have_value("kin/mini")
    expect(playground.recipe()).to_contain_text("base_model: kin/mini")
    expect(chips(playground)).to_have_text(["● kin/mini-code"])
    chips(playground).first.click()
    expect(picker(playground, "b")).to_have_value("kin/mini-code")
    expect(playground.recipe()).to_contain_text("model: kin/mini-code")
    expect(playground.part("notes")).to_contain_text("kin/mini-code is gated")
    expect(chips(playground)).to_have_count(0)


def test_a_base_further_back_is_offered_too(visit: Visit) -> None:
    """Not where the base is set already, nor for a method that has none; a preset clears all."""
    playground = visit().ready()
    playground.pick("a", "kin/mini-code-chat")
    expect(chips(playground)).to_have_text(["○ kin/mini-code", "○ kin/mini"])
    picker(playground, "b").click()
    playground.page.keyboard.press("Tab")  # to leave a picker as it was changes nothing
    playground.page.wait_for_timeout(400)
    chips(playground).last.click()
    expect(chips(playground)).to_have_count(0)
    playground.part("method").get_by_label("Linear").check()
    playground.pick("a", "kin/mini-chat")
    expect(chips(playground)).to_have_text(["● kin/mini-code"])
    playground.part("preset").get_by_label("Sums + French (SLERP)").check()
    expect(chips(playground)).to_have_count(0)


def test_nothing_is_asked_about_embedded_models(visit: Visit, local_hub: LocalHub) -> None:
    playground = visit().ready()
    before = len(local_hub.log)
    playground.pick("b", "assets/demo/base")
    expect(playground.recipe()).to_contain_text("model: assets/demo/base")
    playground.page.wait_for_timeout(400)
    expect(chips(playground)).to_have_count(0)
    assert len(local_hub.log) == before


def test_without_a_network_the_curated_models_remain(visit: Visit, tmp_path: Path) -> None:
    """One quiet sentence, no error; the list is narrowed all the same."""
    playground = visit()
    with running(tmp_path, HF_ENDPOINT="http://127.0.0.1:9") as app:
        playground.page.goto(app.url)
        playground.ready()
        write(playground, "a", "smollm2")
        expect(playground.part("silence")).to_contain_text("no answer")
        smol = ["HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"]
        expect(lines(playground, "a")).to_contain_text(smol)
        playground.page.keyboard.press("Control+A")
        playground.page.keyboard.type("bruno", delay=40)
        playground.page.keyboard.press("Enter")
        expect(picker(playground, "a")).to_have_value("Bruno · assets/demo/b")
        expect(playground.page.locator(".failure, .toast-body")).to_have_count(0)
        expect(chips(playground)).to_have_count(0)
        playground.page.close()  # before its server, which it would miss
