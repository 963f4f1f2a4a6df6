"""What the page does with earlier merges: lists them, and has one of them answer again.

The list is the browser's. A merge of it is planned, checked for the visitor and, where it is no
longer in memory, made anew, like any recipe.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import gradio as gr

from merging.errors import MergeError
from merging.ui import asking, choosing, history, jobs, look, showing
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.history import Past
from merging.ui.page import Page
from merging.ui.progress import undone
from merging.ui.settings import idle
from merging.ui.visit import PINNED, Visit
from merging.ui.visitor import Visitor


def note(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Remember the merge that has just been made, if one was."""
    visit: Visit = values[page.visit]
    pasts = history.read(values[page.past])
    if visit.made and not visit.merging:
        pasts = history.added(pasts, visit.made, visit.took, time.time())
    yield _kept(page, pasts)


def judge(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Remember whether it works."""
    identity, _, works = values[page.judged]
    pasts = history.read(values[page.past])
    yield _kept(page, pasts if works is None else history.judged(pasts, identity, works))


def draw(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The list, with votes and ages as of now."""
    visit: Visit = values[page.visit]
    pasts, now = history.read(values[page.past]), time.time()
    lines = [(history.line(past, visit.votes, now), past.id) for past in pasts]
    known = {None, *(past.id for past in pasts)}  # else what is chosen meanwhile stays so
    gone = {} if values[page.listing] in known else {"value": None}
    yield {
        page.listing: gr.update(choices=lines, visible=bool(lines), **gone),
        page.past_box: gr.update(label=f"History ({len(lines)})" if lines else "History"),
    }


@shows_errors("past_status")
def pin(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Put one into the pinned column, where it answers what was asked if merges do so."""
    before, past = idle(page, values), _chosen(page, values)
    if before.ballot:
        raise MergeError("This would say which answer is whose: vote first.")
    own = replace(visitor, pins={**visitor.pins, **past.pins})
    yield {page.visit: replace(before, asking=True)}
    steps = jobs.make(past.written(), own)
    made, _ = yield from undone(page, before, steps, "past_status")
    visit = before.beside(made)
    told = look.hint(f"{past.name} stands beside the merged model.")
    yield showing.stage(page, visit, values) | {page.past_status: told}
    if values[page.again] and visit.asked and not visit.said[PINNED]:
        values = {**values, page.visit: visit}
        yield from asking.talked(page, visitor, values, visit.talk(), (PINNED,))


@shows_errors("past_status")
def chat(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Make one the merged model again, at the commits of then; its recipe goes into the form."""
    idle(page, values)
    past = _chosen(page, values)
    text, pins = past.written().to_yaml(), {**visitor.pins, **past.pins}
    filled = {page.preset: None, page.why: "", page.pins: pins, page.past_status: ""}
    sizes = dict(past.sizes)
    yield choosing.filled(page, text) | filled | {page.sizes: sizes}
    values = {**values, page.recipe: text, page.pins: pins, page.sizes: sizes}
    try:
        yield from asking.remerged(page, replace(visitor, pins=pins), values)
    except Exception:
        yield {page.progress: ""}
        raise
    yield {page.past_status: look.hint(f"{past.name} is the merged model.")}


def share(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The recipe of one, its models at the commits of then."""
    try:
        past = _chosen(page, values)
    except MergeError as error:
        yield {page.saved: None, page.past_status: look.failure(str(error))}
    else:
        yield {page.saved: {"text": past.recipe}, page.past_status: ""}


@shows_errors("past_status")
def forget(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Take one off the list; where it stands as a column it goes on."""
    past = _chosen(page, values)
    pasts = history.read(values[page.past])
    yield _kept(page, [each for each in pasts if each.id != past.id]) | {page.past_status: ""}


def _chosen(page: Page, values: Values) -> Past:
    found = history.chosen(values[page.past], values[page.listing])
    if found is None:
        raise MergeError("Choose a merge of the list first.")
    return found


def _kept(page: Page, pasts: Sequence[Past]) -> Updates:
    return {page.past: [asdict(past) for past in pasts]}
