"""The sweep in a real browser: drawn as it goes, used in the form, stopped, refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from merging import Recipe, sweep
from merging.exam import exam
from merging.knobs import Knob, along
from merging.library import Library
from merging.opening import open_source
from merging.sweep import Scored
from merging.ui import sweeping
from merging.ui.page import Page
from merging.ui.visitor import Visitor
from tests.ui.models import SLERP, TIES
from tests.ui.playground import Playground

Visit = Callable[..., Playground]


def opened(visit: Visit, width: int = 1440, steps: int = 3) -> Playground:
    playground = visit(width=width).ready()
    playground.unfold("Sweep")
    expect(playground.part("sweep-knob").locator("input")).to_have_value("lambda")
    field(playground, "steps", steps)
    playground.option("Length", 8)
    return playground


def field(playground: Playground, name: str, value: float) -> None:
    """Write into one of the sweep's fields, again if a range that was just chosen comes after."""
    place = playground.part(f"sweep-{name}").locator("input")
    for _ in range(5):
        place.fill(str(value))
        place.press("Tab")
        playground.page.wait_for_timeout(500)
        if place.input_value() == str(value):
            return


@pytest.mark.parametrize(
    ("text", "knob", "span"), [(TIES, "density", (0.2, 1)), (SLERP, "t", (0, 0.8))]
)
def test_a_handler_scores_what_the_recipe_becomes(
    text: str, knob: str, span: tuple[float, float], page: Page
) -> None:
    """The page's points, without a browser, are those of the recipes at these values."""
    inputs = {*page.asking(), *page.sweeping()}
    asked = [["What is 38 + 27?", "65"], ["Say my green shirt in French.", "ma chemise verte"]]
    values = {part: part.value for part in inputs} | {
        page.recipe: text, page.knob: knob, page.low: span[0], page.high: span[1], page.count: 3,
        page.tokens: 8, page.rows: asked,
    }  # fmt: skip
    *_, last = sweeping.run(page, Visitor(folders=True), values)
    recipes = along(Recipe.from_yaml(text), Knob(knob), *span, 3)
    sources = {name: open_source(name) for name in next(iter(recipes.values())).names()}
    given = exam([(question, expected) for question, expected in asked], max_new_tokens=8)
    points = sweep.sweep(recipes, sources, given, Library("cpu", 10**9))
    expected = {e.value: e.result for e in points if isinstance(e, Scored) and e.value is not None}
    assert last[page.swept].curve.points == expected
    assert [*expected] == [*recipes] and any(any(r.marks) for r in expected.values())


def rows(playground: Playground) -> list[str]:
    """The heads of the table's rows."""
    found = playground.part("sweep-numbers").locator("tbody th")
    return [text.strip() for text in found.all_inner_texts()]


@pytest.mark.browser
def test_a_sweep_and_its_value(visit: Visit, tmp_path: Path) -> None:
    """The demo trio's best lambda lies in the middle; it goes into slider and recipe, and no merge
    is made of it by itself. What was measured can be saved with its recipe."""
    playground = opened(visit)
    status = playground.part("sweep-status")
    playground.part("save-sweep-json").click()
    expect(status.locator(".failure")).to_contain_text("nothing to save")
    playground.slide("ties-lambda", 0.5)
    playground.part("run-sweep").click()
    expect(status).to_contain_text("3 values in", timeout=90_000)
    assert rows(playground) == ["A", "B", "0", "1.5 (best)", "3"]
    cells = playground.part("sweep-numbers").locator("tbody tr").nth(3).locator("td")
    assert cells.all_inner_texts() == ["100", "100", "100"]
    drawn = playground.part("sweep-plot").locator(".scatterlayer .trace")
    expect(drawn).to_have_count(5)
    expect(drawn.first.locator("path.point")).to_have_count(3)
    expect(playground.part("sweep-point").locator("input")).to_have_value(re.compile(r"^1\.5: 100"))
    playground.part("use-value").click()
    expect(status).to_contain_text("lambda is 1.5 now")
    expect(playground.part("ties-lambda").locator("input[type=number]")).to_have_value("1.5")
    expect(playground.recipe()).to_contain_text("lambda: 1.5")
    assert playground.part("progress").inner_text() == ""
    saved = json.loads(playground.saved("save-sweep-json", tmp_path / "sweep.json"))
    assert saved["best"] == 1.5 and [v["value"] for v in saved["values"]] == [0, 1.5, 3]
    (recipe,) = saved["recipes"].values()
    assert "lambda: 0.5" in recipe["recipe"]
    text = playground.saved("save-sweep-markdown", tmp_path / "sweep.md")
    assert "| 1.5 (best) | 100 | 100 | 100 |" in text and "```yaml" in text


@pytest.mark.browser
def test_what_the_parents_say(visit: Visit) -> None:
    """At 390 pixels nothing is wider than the page, and each parent's text has its own panel."""
    playground = opened(visit, width=390)
    playground.page.get_by_text("What the parents say").click()
    playground.part("run-sweep").click()
    expect(playground.part("sweep-status")).to_contain_text("3 values in", timeout=90_000)
    expect(playground.part("sweep-plot").locator(".subplot")).to_have_count(2)
    playground.page.wait_for_function("document.documentElement.scrollWidth <= 390")
    own = playground.part("sweep-numbers").locator("tbody tr").first.locator("td")
    assert 1 <= float(own.first.inner_text()) < float(own.last.inner_text())


@pytest.mark.browser
def test_stop_keeps_the_points(visit: Visit) -> None:
    """What has come stays, and the page works on."""
    playground = opened(visit, steps=21)
    status = playground.part("sweep-status")
    playground.part("run-sweep").click()
    expect(playground.part("sweep-numbers").locator("tbody tr").nth(2)).to_be_visible(
        timeout=90_000
    )
    playground.part("stop-sweep").click()
    expect(status).to_have_text("Stopped.")
    count = len(rows(playground))
    assert 3 <= count < 23
    playground.ask("What is 38 + 27?", ("a", "b"))
    assert playground.answers("a") == ["65"] and len(rows(playground)) == count


@pytest.mark.browser
def test_what_can_be_swept(visit: Visit) -> None:
    """The numbers are the method's; one that is set in YAML is refused in a sentence, and so is a
    range that is none."""
    playground = opened(visit)
    knob, status = playground.part("sweep-knob").locator("input"), playground.part("sweep-status")
    knob.click()
    options = playground.page.locator("[role=option]")
    expect(options).to_have_count(7)
    assert [text.strip().removeprefix("✓").strip() for text in options.all_inner_texts()] == [
        "lambda", "weight of all", "density of all", "weight of ◆ A", "weight of ● B",
        "density of ◆ A", "density of ● B",
    ]  # fmt: skip
    options.filter(has_text="density of all").click()
    expect(playground.part("sweep-to").locator("input")).to_have_value("1")
    field(playground, "from", 2)
    playground.part("run-sweep").click()
    expect(status.locator(".failure")).to_contain_text("2 to 1 is no range")
    playground.paste(
        "merge_method: slerp\nbase_model: assets/demo/a\n"
        "models: [{model: assets/demo/a}, {model: assets/demo/b}]\nparameters: {t: [0, 1]}\n"
    )
    expect(knob).to_have_value("t")
    playground.part("run-sweep").click()
    expect(status.locator(".failure")).to_contain_text("t is set in YAML")
