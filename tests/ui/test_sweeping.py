"""The sweep in a real browser: drawn as it goes, used in the form, stopped, refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.ui.playground import Playground

pytestmark = pytest.mark.browser

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


def rows(playground: Playground) -> list[str]:
    """The heads of the table's rows."""
    found = playground.part("sweep-numbers").locator("tbody th")
    return [text.strip() for text in found.all_inner_texts()]


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
