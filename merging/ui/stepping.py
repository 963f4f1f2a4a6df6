"""One tensor of the recipe's merge, step by step, while sliders move; nothing is merged for it.

It runs in the page's own process: a tensor or two of it is no work for a device.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from merging import hub, stepwise
from merging.errors import MergeError
from merging.pairing import Step
from merging.plan import Plan, plan
from merging.recipe import Recipe
from merging.stepwise import SIDE, View
from merging.ui import arrows, grids, look
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.page import Page
from merging.ui.visitor import Visitor


@shows_errors("steps_status")
def show(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Draw the chosen tensor, or another where the models have none of this name."""
    recipe = Recipe.from_yaml((values[page.steps_of] or {}).get("text") or "")
    with hub.using(recipe.names()):
        decided = plan(recipe, find=visitor.find)
        step, names = _chosen(decided, values[page.tensor])
        before = values[page.steps_shown]
        new = (step.name, step.shape) != before[1:]
        row, column = (0, 0) if new else _first(page, values)
        view = stepwise.look(decided, step, row, column)
    updates: Updates = {page.steps: _drawn(view), page.steps_status: _said(view)}
    if new or names != before[0] or values[page.tensor] != step.name:
        updates |= _offered(page, view, names)
    yield updates


def _first(page: Page, values: Values) -> tuple[int, int]:
    """Row and column of the patch's first entry; a field that is empty means the first."""
    row, column = (int(values[part] or 1) - 1 for part in (page.first_row, page.first_column))
    return row, column


def _chosen(decided: Plan, name: str | None) -> tuple[Step, tuple[str, ...]]:
    there = stepwise.offered(decided)
    if not there:
        raise MergeError(
            f"All tensors have more than {stepwise.LIMIT:,} entries, too many to go through at "
            "each step: choose smaller models."
        )
    step = next((s for s in there if s.name == name), None) or stepwise.usual(there)
    return step, tuple(s.name for s in there)


def _offered(page: Page, view: View, names: tuple[str, ...]) -> Updates:
    """The tensors to choose from, and the places in the one that is shown."""
    step, (rows, columns) = view.step, stepwise.sides(view.step)

    def places(at: int, size: int) -> Any:
        last = max(1, size - SIDE + 1)
        return gr.update(value=at + 1, maximum=max(2, last), interactive=last > 1)

    return {
        page.tensor: gr.update(choices=list(names), value=step.name),
        page.first_row: places(view.row, rows), page.first_column: places(view.column, columns),
        page.steps_shown: (names, step.name, step.shape),
    }  # fmt: skip


def _drawn(view: View) -> str:
    return f'<div class="steps">{arrows.drawn(view)}{grids.drawn(view)}</div>'


def _said(view: View) -> str:
    if view.alone:
        return look.hint(
            "This variant trims the whole model, which is too large to measure here: "
            "the threshold is that of this tensor alone."
        )
    return ""
