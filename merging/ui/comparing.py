"""What the page does with answers that are there: stops them, has them voted on, saves them.

These handlers are not queued, and so give one update each.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import gradio as gr

from merging import gpu
from merging.errors import MergeError
from merging.ui import look, showing, transcript
from merging.ui.blind import Vote, tallies
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.page import Page
from merging.ui.visit import CLEARED, PINNED, Visit
from merging.ui.visitor import Visitor

SETTLING = 0.6
"""Seconds: answers are shown every 0.08, a sheet's every 0.25, and a busy machine comes late."""


def settle(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Leave what is just being cancelled the time to write down how far it came."""
    page.pending.stop(visitor)
    time.sleep(SETTLING)
    yield {page.status: gr.skip()}


def settle_cleared(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The same before Clear, of which a merge that answers again hears: it is not cancelled, since
    one that is still being made goes on.
    """
    visit: Visit = values[page.visit]
    if visit.running and not visit.merging:
        visit.stops.update({*visit.running, CLEARED})
    yield from settle(page, visitor, values)


def stop(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Say that the merge that was made was stopped, or each column that was still answering."""
    visit: Visit = values[page.visit]
    drawn: Updates = {page.status: "", page.past_status: ""}
    if visit.merging:
        drawn[page.progress] = look.hint("Stopped.")
    if values[page.sanity] == look.CHECKING:
        drawn[page.sanity] = look.hint("Not checked: stopped.")
    if visit.merging or visit.running or visit.asking:
        drawn |= showing.stage(page, visit.ended(), values)
    yield drawn


def stop_one(page: Page, visitor: Visitor, values: Values, column: int | str) -> Iterator[Updates]:
    """Stop one column, by its name or its place; the others go on, and whoever asked hears of it.

    Nothing is drawn here: the page is that of the question, which goes on.
    """
    visit: Visit = values[page.visit]
    if isinstance(column, int):
        column = visit.ballot.places[column] if visit.ballot else ""
    visit.stops.add(column)
    yield {page.status: gr.skip()}


@shows_errors("status")
def clear(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Forget what was said. Votes stand: they are about merges."""
    visit: Visit = values[page.visit].ready()
    visit.stops.update({*visit.running, CLEARED})  # of a merge that has just begun to answer
    empty: Updates = {c.chat: [] for c in page.columns.values()}
    visit = Visit(
        visit.made, visit.took, visit.pinned, visit.models, votes=visit.votes, inside=visit.inside
    )
    empty |= showing.heads(page, visit, values) | {page.legend: "", page.status: ""}
    yield showing.stage(page, visit, values) | empty


def redraw(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """With marks or without them."""
    visit: Visit = values[page.visit]
    slots = [gpu.MERGED] if gpu.MERGED in visit.said and gpu.MERGED not in visit.running else []
    updates = showing.columns(page, visit, slots, values)
    del updates[page.visit]  # which may go on meanwhile
    yield updates


@shows_errors("status")
def reveal(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Give the columns their names back."""
    visit: Visit = values[page.visit].idle()
    yield showing.stage(page, replace(visit, ballot=None), values)


@shows_errors("status")
def vote(page: Page, visitor: Visitor, values: Values, choice: int | str) -> Iterator[Updates]:
    """Count a vote, for the answer in a place or for nobody, and say who was who."""
    visit: Visit = values[page.visit].idle()
    if visit.ballot is None:
        raise MergeError("There is nothing to vote on: ask a question first.")
    places = visit.ballot.places
    chosen = places[choice] if isinstance(choice, int) else choice
    names = {**visit.models, PINNED: visit.title(PINNED)}
    models = {slot: names.get(slot, slot) for slot in places}
    merges = {slot: made for slot, made in visit.merges.items() if slot in places}
    votes = (*visit.votes, Vote(visit.asked, chosen, visit.ballot, models, merges))
    visit = replace(visit, ballot=None, votes=votes)
    told = {
        page.status: look.hint(_who_was_who(places, models)),
        page.tally: look.tally(tallies(votes)),
    }
    yield showing.stage(page, visit, values) | told


def _who_was_who(places: Sequence[str], models: Mapping[str, str]) -> str:
    names = (look.short(models[slot]) for slot in places)
    return "Answers: " + ", ".join(f"{n + 1} {name}" for n, name in enumerate(names)) + "."


@shows_errors("status")
def pin(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Keep the last merge beside the next one."""
    visit: Visit = values[page.visit].idle()
    if visit.made is None:
        raise MergeError("There is no merge to pin yet: press Merge first.")
    yield showing.stage(page, visit.pin(), values)


@shows_errors("status")
def unpin(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    visit: Visit = values[page.visit].idle()
    yield showing.stage(page, visit.unpin(), values)


def copy(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The merged model's last answer as it was written, for the clipboard."""
    reply = values[page.visit].replies.get(gpu.MERGED)
    yield {page.saved: {"text": reply.text if reply else ""}}


def save(page: Page, visitor: Visitor, values: Values, kind: str) -> Iterator[Updates]:
    """What was said and voted, as a file; without the question that still waits for its vote."""
    visit: Visit = values[page.visit]
    log = visit.log[:-1] if visit.ballot else visit.log
    if not log and not visit.votes:
        told = "There is nothing to save yet: ask something first, and vote if blind."
        yield {page.saved: None, page.status: look.failure(told)}
        return
    write = {"md": transcript.to_markdown, "json": transcript.to_json}[kind]
    file = transcript.file("side-by-side", kind, write(log, visit.votes))
    yield {page.saved: file, page.status: ""}
