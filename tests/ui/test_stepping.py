"""One tensor step by step, in a real browser: what moves with the sliders, and what stays."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect
from safetensors.torch import load_file

from tests.hub import LocalHub
from tests.reference import cosine, kept_count
from tests.ui.models import DEMO, NAMES, TIES, WEIGHTS
from tests.ui.playground import Playground

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
TENSOR = "model.layers.2.mlp.down_proj.weight"
SIZE = 128 * 384


def opened(playground: Playground) -> Playground:
    playground.unfold("Step by step")
    expect(playground.page.locator("#steps .stage").first).to_be_visible()
    return playground


def stage(playground: Playground, name: str) -> Locator:
    return playground.page.locator("#steps .stage", has_text=name).last


def way(playground: Playground) -> Locator:
    """What became of the chosen entry."""
    return playground.page.locator("#steps .way p.chosen")


def test_sliders_move_it_without_a_merge(visit: Visit) -> None:
    """Folded it costs nothing; open, every number follows the sliders, and nothing is merged."""
    playground = visit().ready()
    asked: list[str] = []
    playground.page.on("request", lambda request: asked.append(request.post_data or ""))
    playground.slide("ties-density-a", 0.4)
    playground.page.wait_for_timeout(1000)
    assert not any('"at":' in text for text in asked)
    opened(playground)
    assert any('"at":' in text for text in asked)
    expect(playground.part("tensor").locator("input")).to_have_value(TENSOR)
    expect(playground.page.locator("#steps .stage")).to_have_count(5)
    expect(stage(playground, "Trimmed")).to_contain_text(f"A {kept_count(SIZE, 0.4):,}")
    playground.slide("ties-density-a", 0.1)
    expect(stage(playground, "Trimmed")).to_contain_text(f"A {kept_count(SIZE, 0.1):,}")
    merged = way(playground).inner_text()
    playground.slide("ties-lambda", 2)
    expect(stage(playground, "Merged")).to_contain_text("times lambda 2")
    assert way(playground).inner_text() != merged
    playground.slide("ties-weight-b", 0.5)
    expect(playground.page.locator("#steps .stage")).to_have_count(6)
    assert playground.part("progress").inner_text().strip() == ""


def test_an_entry_is_followed_by_click_and_keys(visit: Visit) -> None:
    """The chosen entry is marked in every grid and told in words, also after a slider moved."""
    playground = opened(visit().ready())
    page, chosen = playground.page, playground.page.locator("#steps i.chosen")
    grids = page.locator("#steps .cells").count()
    stage(playground, "Kept").locator("[data-cell='18']").last.click()
    expect(chosen).to_have_count(grids)
    expect(way(playground)).to_contain_text("Row 3, column 3")
    first = page.locator("#steps .cells").first
    first.locator("[tabindex='0']").focus()
    turns = {"Right": (3, 4), "Up": (2, 4), "Left": (2, 3), "Down": (3, 3)}
    for turn, (row, column) in turns.items():
        page.keyboard.press(f"Arrow{turn}")
        expect(way(playground)).to_contain_text(f"Row {row}, column {column}")
        expect(first.locator(":focus")).to_have_class(re.compile("chosen"))
    playground.slide("ties-density-a", 0)
    expect(way(playground)).to_contain_text("Trimmed A dropped")
    expect(way(playground)).to_contain_text("Row 3, column 3")
    number = first.locator("i.chosen").get_attribute("title").removeprefix("A ")  # type: ignore[union-attr]
    expect(way(playground)).to_contain_text(f"δA = {number}")


def test_slerp_as_arrows(visit: Visit) -> None:
    """Angle and lengths are the tensors'; the merged arrow goes from one to the other with t."""
    playground = opened(visit().ready())
    playground.part("preset").locator("label", has_text="SLERP").click()
    told = playground.page.locator("#steps .arrows figcaption")
    a, b = (load_file(DEMO / n / WEIGHTS)[TENSOR].double().numpy().reshape(-1) for n in "ab")
    expect(told).to_contain_text(f"{math.degrees(math.acos(cosine(a, b))):.2f}°")
    expect(told).to_contain_text("t = 0.5")
    expect(told).to_contain_text("spherical")
    tips = []
    for t in (0.2, 0.8):
        playground.slide("slerp-t", t)
        expect(told).to_contain_text(f"t = {t}")
        arrow = playground.page.locator("#steps .arrow.merged line")
        tips.append(float(arrow.get_attribute("x2") or "nan"))
    assert tips[0] < -20 < 20 < tips[1]


def test_other_tensors_and_places(visit: Visit) -> None:
    """Every tensor can be chosen, with places inside it; an error stands in place of the steps."""
    playground = opened(visit(width=390).ready())
    field = playground.part("tensor").locator("input")
    field.click()
    field.fill("lm_head.weight")
    field.press("Enter")
    row = playground.part("first-row").locator("input[type=number]")
    expect(row).to_have_attribute("max", "1019")  # 1,024 rows, two of them b's own, less 7
    row.fill("1019")
    row.press("Tab")
    expect(way(playground)).to_contain_text(re.compile("Row 10(19|2[0-6])"))
    wide = playground.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    playground.part("method").locator("label", has_text="Passthrough").click()
    failure = playground.part("steps-status").locator(".failure")
    expect(failure).to_contain_text("Passthrough takes 1 model")
    expect(playground.page.locator("#steps .stages")).to_be_hidden()
    playground.part("method").locator("label", has_text="Linear").click()
    expect(playground.page.locator("#steps .arrows")).to_be_visible()
    expect(failure).to_have_count(0)


def test_models_that_are_not_here_yet(visit: Visit, local_hub: LocalHub) -> None:
    """Nothing is fetched for it: a sentence says what to do, and after the merge the steps come."""
    for name in NAMES:
        local_hub.add(f"steps/{name}", DEMO / name)
    playground = visit().ready()
    playground.paste(TIES.replace("assets/demo/", "steps/"))
    expect(playground.part("recipe-status")).to_contain_text("in use")
    playground.unfold("Step by step")
    failure = playground.part("steps-status").locator(".failure")
    expect(failure).to_contain_text("not on this machine yet: press Merge")
    playground.merge()
    expect(playground.page.locator("#steps .stage")).to_have_count(5)
    expect(failure).to_have_count(0)
