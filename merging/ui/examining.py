"""The question sheet: ten questions to all columns, each by itself, with a score where an answer
was expected.

It runs and draws what `sheet` knows.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from merging import gpu
from merging.chat import Reply
from merging.errors import MergeError
from merging.merge import Progress
from merging.ui import jobs, look, results, sheet, transcript
from merging.ui.columns import SLOTS
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.page import Page
from merging.ui.progress import followed
from merging.ui.settings import how_asked, idle, names, question_of
from merging.ui.sheet import Sheet
from merging.ui.visitor import Visitor

SHORT = 240
"""Characters of an answer in the table; what is saved has all of them."""
EVERY = 0.25
"""Seconds between two looks at answers that grow: each sends the whole table."""
SIGNS = {
    True: '<b class="right" aria-label="right">✓</b> ',
    False: '<b class="wrong" aria-label="wrong">✗</b> ',
    None: "",
}


def offer(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The chosen preset's questions, unless there are some of the visitor's own."""
    chosen = next((p for p in page.presets if p.key == values[page.preset]), None)
    given = [sheet.rows(preset.sheet) for preset in page.presets]
    own = [["" if cell is None else cell for cell in row] for row in values[page.rows] or []]
    replaced = chosen and (own in given or not any(map(any, own)))
    yield {page.rows: sheet.rows(chosen.sheet) if chosen and replaced else gr.skip()}


@shows_errors("sheet_status")
def run(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Ask every question of all columns, in one job; what was answered before stands till then."""
    visit = idle(page, values)
    if visit.ballot:
        raise MergeError("This would say who answers how: vote first.")
    rows, before = sheet.read(values[page.rows] or ()), values[page.sheet]
    parents, merges = names(page, values), visit.merges
    slots = [slot for slot in SLOTS if slot in parents or slot in merges]
    if not slots:
        raise MergeError("Nobody is here to ask: choose a model, or press Merge.")
    yield {page.sheet: replace(before, running=True)}
    try:
        job = yield from followed(page, jobs.job_of(parents, merges, visitor), "sheet_status")
    except Exception:
        yield {page.sheet: before}
        raise
    alone = [({"role": "user", "content": text},) for text, _ in rows]
    asked = [question_of(page, values, dict.fromkeys(slots, said)) for said in alone]
    found = sheet.new(rows, how_asked(page, values), parents, merges, slots)
    yield from _answered(page, found, replace(job, questions=tuple(asked)))


def _answered(page: Page, found: Sheet, job: gpu.Job) -> Iterator[Updates]:
    """Draw each answer that has ended at once, and those that grow now and then."""
    number, start, drawn, notice = 0, time.monotonic(), 0.0, ""
    try:
        for event in jobs.run(job):
            if isinstance(event, gpu.Asking):
                number = event.number
            elif isinstance(event, Reply):
                found, notice = found.replied(number, event), event.notice or notice
            elif isinstance(event, Progress):
                yield {page.sheet_status: look.progress(event)}
                continue
            ended = isinstance(event, Reply) and event.ended
            if ended or time.monotonic() - drawn > EVERY:
                drawn = time.monotonic()
                yield _drawn(page, found) | {page.sheet_status: _far(found, number)}
    except Exception:
        yield _drawn(page, found.ended())
        raise
    told = f"{found.done()} answers in {time.monotonic() - start:.1f} s. {notice}"
    yield _drawn(page, found.ended()) | {page.sheet_status: look.hint(told.strip())}


def stop(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Keep what has come."""
    found: Sheet = values[page.sheet]
    if found.running:
        yield _drawn(page, found.ended()) | {page.sheet_status: look.hint("Stopped.")}
    else:
        yield {page.sheet_status: gr.skip()}


def save(page: Page, visitor: Visitor, values: Values, kind: str) -> Iterator[Updates]:
    """The answers and scores so far, as a file."""
    found: Sheet = values[page.sheet]
    if not found.exchanges:
        told = "There is nothing to save yet: run the sheet first."
        yield {page.saved: None, page.sheet_status: look.failure(told)}
        return
    write = {"md": results.to_markdown, "json": results.to_json}[kind]
    file = transcript.file("question-sheet", kind, write(found))
    yield {page.saved: file, page.sheet_status: gr.skip()}


def _far(found: Sheet, number: int) -> str:
    whole = len(found.exchanges) * len(found.slots)
    told = f"Question {number + 1} of {len(found.exchanges)}"
    return look.bar(found.done() / whole, told, "Question sheet")


def _drawn(page: Page, found: Sheet) -> Updates:
    return {page.sheet: found, page.answered_rows: _table(found) if found.exchanges else ""}


def _table(found: Sheet) -> str:
    """A row a question, a column a model, and the scores below."""
    heads = "".join(f'<th scope="col">{_head(found, slot)}</th>' for slot in found.slots)
    rows = "".join(_row(found, number) for number in range(len(found.exchanges)))
    scores = "".join(_td(slot, results.told(found.score(slot))) for slot in found.slots)
    asked = escape(_settings(found.exchanges[0].settings))
    return (
        '<div class="sheet" tabindex="0" role="region" aria-label="Answers to the sheet"><table>'
        f'<caption>{asked}</caption><thead><tr><th scope="col">Question</th>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody><tfoot><tr><th scope="row">Right</th>{scores}</tr></tfoot>'
        "</table></div>"
    )


def _settings(how: Mapping[str, Any]) -> str:
    told = f"Temperature {how['temperature']:g} · seed {how['seed']} · "
    told += f"{how['max_new_tokens']} tokens at most"
    return told + (f" · system prompt: {_short(how['system'])}" if "system" in how else "")


def _head(found: Sheet, slot: str) -> str:
    """A column's mark and name, and who it was: of a merge, which."""
    asked = found.exchanges[0]
    made = asked.merges.get(slot)
    who = f"{made.title} {made.identity[:8]}" if made else look.short(asked.models[slot])
    name = look.slot_name(slot)
    mark = f'<span class="mark {slot}">{look.MARKS[slot]}</span>'
    return f'{mark} {name[0].upper()}{name[1:]}<span class="title"> · {escape(who)}</span>'


def _row(found: Sheet, number: int) -> str:
    expected = escape(_short(found.expected[number]))
    told = f"<small>expects {expected}</small>" if expected else ""
    question = escape(_short(found.exchanges[number].question))
    cells = "".join(_td(slot, _cell(found, number, slot)) for slot in found.slots)
    return f'<tr><th scope="row">{question}{told}</th>{cells}</tr>'


def _td(slot: str, inner: str) -> str:
    """Its column's name is drawn where the table has no room for columns."""
    return f'<td data-of="{look.MARKS[slot]} {look.slot_name(slot)}">{inner}</td>'


def _cell(found: Sheet, number: int, slot: str) -> str:
    reply = found.exchanges[number].replies.get(slot)
    if reply is None:
        return ""
    sign = SIGNS[found.mark(number, slot)]
    note = "" if reply.ended in (None, "end of text") else f"<small>{escape(reply.ended)}</small>"
    return sign + escape(_short(reply.text)) + note


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else line[:SHORT] + "…"
