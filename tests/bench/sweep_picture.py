"""Draws README's picture, assets/sweep.png: `python tests/bench/sweep_picture.py`.

The embedded trio's task arithmetic, lambda from 0 to 3, scored on the questions of
assets/demo/held-out.tsv; drawn as the page draws it, and photographed in Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

from merging import Recipe, plan
from merging.exam import exam
from merging.knobs import Knob, along
from merging.library import Library, budget
from merging.ratings import Curve, swept_rows, table
from merging.sheets import open_sheet
from merging.sources import Remote
from merging.sweep import Scored, sweep
from merging.ui.curves import INK, figure

ROOT = Path(__file__).parents[2]

DARK = "#0f172a"
"""What the page's style makes of INK on a light ground."""
LAMBDA, LOW, HIGH, COUNT = Knob("lambda"), 0.0, 3.0, 13
A, B = "assets/demo/a", "assets/demo/b"
RECIPE = Recipe.from_yaml(f"""
merge_method: task_arithmetic
base_model: assets/demo/base
models: [{{model: {A}}}, {{model: {B}}}]
""")


def measured() -> Curve:
    """The sweep, as `python -m merging sweep` does it."""
    sources = {s.name: s for s in plan(RECIPE).sources if not isinstance(s, Remote)}
    given = exam(open_sheet(ROOT / "assets" / "demo" / "held-out.tsv"))
    curve = Curve(LAMBDA, {A: "Ada", B: "Bruno"})
    recipes = along(RECIPE, LAMBDA, LOW, HIGH, COUNT)
    for event in sweep(recipes, sources, given, Library("cpu", budget("cpu"))):
        if isinstance(event, Scored):
            curve = curve.scored(event)
    return curve


def photographed(drawn: go.Figure, path: Path) -> None:
    """The picture as it stands on a page, at twice its size."""
    drawn.update_layout(paper_bgcolor="white", plot_bgcolor="white")
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or "/usr/bin/chromium"
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 460}, device_scale_factor=2)
        html = drawn.to_html(include_plotlyjs=True, config={"displayModeBar": False})
        page.set_content(html.replace(INK, DARK))
        page.locator(".main-svg").first.wait_for()
        page.locator(".js-plotly-plot").screenshot(path=path)
        browser.close()


def main() -> None:
    """Measure, print the numbers, and write the picture."""
    curve = measured()
    print(table(*swept_rows(curve)))
    drawn = figure(curve, {A: "a", B: "b"}, (LOW, HIGH))
    if drawn is not None:
        photographed(drawn, ROOT / "assets" / "sweep.png")


if __name__ == "__main__":
    main()
