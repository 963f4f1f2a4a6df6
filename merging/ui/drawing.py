"""The panel Inside the merge: draws the last merge's pictures while somebody looks at them.

What they are is `pictures`' affair; here is only when, and what stands there if there are none.
"""

from collections.abc import Iterator
from itertools import zip_longest

import gradio as gr

from merging.recipe import Recipe
from merging.ui import look
from merging.ui.errors import Updates, Values
from merging.ui.jobs import Made
from merging.ui.page import Page
from merging.ui.pictures import pictures
from merging.ui.visit import PARENTS, Visit
from merging.ui.visitor import Visitor

SAMPLED = (
    "The figures are estimated of some four thousand entries of each tensor, taken while it was "
    "merged; ± is two standard errors. Short tensors are taken whole."
)


def opened(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Draw the last merge, and those to come."""
    yield {page.drawn: True, **_drawn(page, values[page.visit])}


def closed(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    yield {page.drawn: False}


def draw(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The last merge's pictures, if the panel is open."""
    yield (
        _drawn(page, values[page.visit]) if values[page.drawn] else {page.inside_status: gr.skip()}
    )


def _drawn(page: Page, visit: Visit) -> Updates:
    found = pictures(visit.inside, _titles(visit)) if visit.inside else []
    told = _about(visit.made, bool(visit.inside), bool(found))
    updates: Updates = {page.inside_status: look.hint(told)}
    for frame, picture in zip_longest(page.frames, found):
        updates |= frame.hung(picture)
    return updates


def _titles(visit: Visit) -> list[str]:
    models = visit.inside.models if visit.inside else ()
    slots = PARENTS[: len(models)]
    return [f"{look.MARKS[s]} {look.short(m)}" for s, m in zip(slots, models, strict=True)]


def _about(made: Made | None, known: bool, drawn: bool) -> str:
    """What stands above the pictures, or in their place."""
    if made is None:
        return "There is no merge yet: press Merge, and what it did is drawn here."
    title = f"{made.title} `{made.identity[:8]}`"
    if drawn:
        return f"{title}. {SAMPLED}"
    if known:
        return f"{title} takes each tensor from one model: there is nothing to compare."
    if Recipe.from_yaml(made.recipe).slices:
        return f"{title} is of slices with different models: there are no figures of all of it."
    return (
        f"{title} was found again, and its figures are not kept any longer: move a value and merge "
        "to see others."
    )
