"""What each model was given to read, looked at in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from merging import gpu
from merging.ui.transcript import Exchange
from merging.ui.visit import PINNED, Made
from merging.ui.visit import Visit as State
from tests.ui.models import DEMO, NAMES, recipe_of
from tests.ui.playground import Playground

SUM = "What is 38 + 27?"
EVIL = "<img src=x onerror=\"document.title='gone'\">"


def _given(playground: Playground, slot: str) -> Locator:
    return playground.part(f"given-{slot}")


def _show(playground: Playground) -> None:
    playground.unfold("What each model reads")
    playground.part("show-given").click()


@pytest.mark.browser
def test_what_each_was_given(visit: Callable[..., Playground]) -> None:
    """Every column's prompt as it was read, the system prompt of then and earlier answers too."""
    playground = visit().ready()
    _show(playground)
    told = playground.part("given-status").locator(".failure")
    expect(told).to_contain_text("Nothing was asked yet")
    playground.merge()
    playground.unfold("Settings")
    system = playground.part("system").locator("textarea")
    system.fill("Be short.")
    playground.ask(SUM)
    system.fill("Be long.")
    playground.awaited(("b",))
    playground.part("retry-b").click()
    playground.finished(("b",))
    _show(playground)
    whole = (
        "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    )
    for slot, words in (("a", "Be short."), ("b", "Be long."), ("merged", "Be short.")):
        text = _given(playground, slot).locator("textarea")
        expect(text).to_have_value(whole.format(words, SUM))
        expect(text).to_be_disabled()
        head = _given(playground, slot).locator(".stats")
        expect(head).to_have_text(re.compile(r"^\d\d of 1,024 tokens · its own template$"))
    expect(told).to_have_count(0)
    expect(_given(playground, "base")).to_be_hidden()
    assert playground.answers("merged") == ["65"]  # it only looks


@pytest.mark.browser
def test_a_strangers_template_stays_text(visit: Callable[..., Playground], tmp_path: Path) -> None:
    """What a template writes is no HTML; one that refuses is a sentence in its own column."""
    folders = {n: Path(shutil.copytree(DEMO / n, tmp_path / n)) for n in NAMES}
    (folders["a"] / "chat_template.jinja").write_text(EVIL + "{{ messages[0]['content'] }}")
    (folders["b"] / "chat_template.jinja").write_text(f"{{{{ raise_exception('{EVIL[:10]}>') }}}}")
    playground = visit().ready()
    playground.paste(recipe_of(folders))
    expect(playground.part("recipe-status")).to_contain_text("in use")
    playground.option("Length", 8)
    playground.ask(SUM, ("a",))
    _show(playground)
    expect(_given(playground, "a").locator("textarea")).to_have_value(EVIL + SUM)
    refused = _given(playground, "b").locator(".failure")
    expect(refused).to_contain_text(f"refuses this conversation ({EVIL[:10]}>)")
    assert playground.part("given").locator("img").count() == 0


def test_the_system_prompt_is_that_of_then() -> None:
    """Of the exchange in which the column was last asked; a pinned merge's as it was merged."""
    made = Made("id", "recipe", "TIES", (), {})
    question = {"role": "user", "content": SUM}
    asked = Exchange(SUM, {"system": "Be short."}, {"a": "org/a"}, {gpu.MERGED: made})
    later = Exchange("Who?", {}, {"b": "org/b"})
    said = dict.fromkeys(("a", "b", gpu.MERGED), (question, {"role": "assistant", "content": "6"}))
    visit = State(made=made, said=said, log=(asked, later)).pin()
    system = {"role": "system", "content": "Be short."}
    for slot in ("a", gpu.MERGED, PINNED):
        assert visit.given(slot, "other") == (system, question)
    assert visit.given("b", "other") == (question,)
    assert visit.given("c", "other") == ()
    forgotten = replace(visit, log=())
    assert forgotten.given("a", "other") == ({"role": "system", "content": "other"}, question)
