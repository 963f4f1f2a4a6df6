"""Draws the chat from what a visit has: its columns, or those without names while it is blind."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import gradio as gr

from merging import gpu
from merging.chat import Reply
from merging.ui import look
from merging.ui.errors import Updates, Values
from merging.ui.following import shares
from merging.ui.page import Page
from merging.ui.visit import PINNED, Visit


def columns(page: Page, visit: Visit, slots: Iterable[str], values: Values) -> Updates:
    """These columns as they stand."""
    updates: Updates = {page.visit: visit}
    for slot in slots:
        if visit.ballot:
            updates |= _unnamed(page, visit, slot)
        else:
            updates |= _named(page, visit, slot, marked=bool(values[page.follow]))
    return updates


def stage(page: Page, visit: Visit, values: Values) -> Updates:
    """Everything: which columns are seen at all, and whether there is something to vote on."""
    ballot = visit.ballot
    over = bool(ballot and not visit.running)
    updates = {
        page.row: gr.update(visible=not ballot),
        page.booths: gr.update(visible=bool(ballot)),
        page.verdict: gr.update(visible=over),
        page.columns[PINNED].box: gr.update(visible=bool(visit.pinned)),
        page.merges: [(made.identity, dict(made.sizes)) for made in visit.merges.values()],
        page.talk: visit.length(),
    }
    for number, booth in enumerate(page.unnamed):
        there = bool(ballot and number < len(ballot.places))
        updates |= {booth.box: gr.update(visible=there), booth.best: gr.update(visible=over)}
    return updates | columns(page, visit, list(visit.said), values)


def heads(page: Page, visit: Visit, values: Values) -> Updates:
    """The chosen parents' names above columns that are empty: others keep those who answered."""
    return {
        page.columns[slot].head: gr.skip() if visit.said.get(slot) else
        look.column_head(slot, look.short(values[picker] or "…"))
        for slot, picker in page.form.pickers.items()
    }  # fmt: skip


def _named(page: Page, visit: Visit, slot: str, *, marked: bool) -> Updates:
    column, reply = page.columns[slot], visit.replies.get(slot)
    stats = look.stats(reply) if reply else ""
    updates: Updates = {
        column.head: look.column_head(slot, look.short(visit.title(slot)), stats),
        column.chat: _messages(visit, slot, marked=marked),
    }
    if slot == gpu.MERGED:
        key = (visit.last(slot), reply.text) if reply and reply.ended else None
        parts = visit.parts.get(key, ()) if key else ()
        updates[page.legend] = look.legend(shares(parts)) if marked else ""
    return updates


def _unnamed(page: Page, visit: Visit, slot: str) -> Updates:
    """The last question and its answer alone: earlier ones have been seen with names."""
    if not visit.ballot or slot not in visit.ballot.places:
        return {}
    number = visit.ballot.places.index(slot)
    booth, reply = page.unnamed[number], visit.replies.get(slot)
    shown: list[Any] = [{"role": "user", "content": visit.last(slot)}]
    if reply:
        text = "*(no answer)*" if reply.failed or (reply.ended and not reply.text) else reply.text
        shown.append({"role": "assistant", "content": text or "…"})
    state = "answering …" if visit.running else "all have answered"
    return {booth.head: look.unnamed_head(number + 1, state), booth.chat: shown}


def _messages(visit: Visit, slot: str, *, marked: bool) -> list[Any]:
    """A column's conversation; answers of the merged model with marks, where it follows others."""
    shown: list[Any] = []
    question = ""
    for message in visit.said.get(slot, ()):
        if message["role"] == "user":
            question = message["content"]
        parts = visit.parts.get((question, message["content"]), ()) if marked else ()
        follows = slot == gpu.MERGED and any(part.follows for part in parts)
        shown.append(_marked(message, parts) if follows else message)
    reply = visit.replies.get(slot)
    if reply and not reply.text and shown:
        shown[-1] = {"role": "assistant", "content": _silent(reply)}
    return shown


def _marked(message: Mapping[str, str], parts: Any) -> dict[str, Any]:
    content = gr.HTML(look.followed(parts), container=False, padding=False)
    return {"role": message["role"], "content": content}


def _silent(reply: Reply) -> str:
    if reply.failed:
        return escape(reply.ended or "", quote=False)  # a template's own words may be in it
    return "…" if not reply.ended else f"*(no words: {reply.ended})*"
