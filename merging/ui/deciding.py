"""Where the merged model decides like whom: token by token along its answer, and what each model
would have said next at one of them.

It shows what `nexttoken` finds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape

import gradio as gr

from merging import gpu
from merging.errors import MergeError
from merging.merge import Progress
from merging.nexttoken import Choice, Distance, Inspection, NextTokens, Read
from merging.ui import jobs, look
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.jobs import Made
from merging.ui.page import Page
from merging.ui.progress import followed
from merging.ui.settings import idle, names
from merging.ui.visit import PARENTS
from merging.ui.visitor import Visitor

ALIKE = 0.1
"""Nats: two parents that differ by less are equally near."""
FAR = 1.0
"""Nats: beyond it nobody would have said this as the merged model does."""


@dataclass(frozen=True)
class Looked:
    """The answer that is looked into, and who reads it, so that another token can be chosen."""

    inspection: Inspection
    models: Mapping[str, str]
    merges: Mapping[str, Made]


@shows_errors("looked_status")
def look_into(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Have all models read the merged model's last answer, from its first token on."""
    visit = idle(page, values)
    reply = visit.replies.get(gpu.MERGED)
    if visit.ballot:
        raise MergeError("This would say which answer is the merged model's: vote first.")
    if visit.made is None or reply is None or not reply.text:
        raise MergeError("There is no answer of the merged model yet: press Merge, and ask.")
    models = names(page, values)
    messages = visit.given(gpu.MERGED, values[page.system] or "")
    talks = dict.fromkeys((*models, *visit.merges), messages)
    inspection = Inspection(talks, reply.text, gpu.MERGED)
    yield from _looked(page, visitor, Looked(inspection, models, visit.merges))


@shows_errors("looked_status")
def choose(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Look at another token; the last choice is what would follow the answer."""
    looked: Looked | None = values[page.looked_into]
    if looked is None:
        raise MergeError("There is nothing to choose from yet: look into an answer first.")
    idle(page, values)
    inspection = replace(looked.inspection, position=int(values[page.token]) - 1)
    yield from _looked(page, visitor, replace(looked, inspection=inspection))


def _looked(page: Page, visitor: Visitor, looked: Looked) -> Iterator[Updates]:
    steps = jobs.job_of(looked.models, looked.merges, visitor)
    job = yield from followed(page, steps, "looked_status")
    for event in jobs.run(replace(job, inspection=looked.inspection)):
        if isinstance(event, Progress):
            yield {page.looked_status: look.progress(event)}
        elif isinstance(event, Read):
            told = f"{look.slot_name(event.column)} has read {event.tokens} of {event.of} tokens"
            yield {page.looked_status: look.bar(event.tokens / event.of, told)}
        elif isinstance(event, NextTokens):
            yield {
                page.looked_into: looked,
                page.strip: gr.update(value=_strip(event), visible=True),
                page.token: gr.update(
                    value=event.position + 1, maximum=len(event.tokens) + 1, visible=True
                ),
                page.bars: _bars(event),
                page.looked_status: "",
            }


def _strip(found: NextTokens) -> list[tuple[str, str]]:
    """Every token, with the parents that are nearest there."""
    return [
        (text or " ", _near({slot: along[n] for slot, along in found.distances.items()}))
        for n, text in enumerate(found.tokens)
    ]


def _near(distances: Mapping[str, Distance]) -> str:
    """Which parent the merged model is like at one token."""
    parents = {s: d.nats for s, d in distances.items() if s in PARENTS and d.nats is not None}
    if not parents:
        return "not comparable"
    nearest = min(parents.values())
    if nearest > FAR:
        return "neither"
    like = [slot for slot, nats in parents.items() if nats - nearest < ALIKE]
    return "all" if len(like) == len(parents) > 1 else " and ".join(map(look.slot_name, like))


def _bars(found: NextTokens) -> str:
    """Five likeliest tokens of every column, and how far each is from the merged one there."""
    text = found.tokens[found.position] if found.position < len(found.tokens) else None
    what = "After the last token" if text is None else f"Token {found.position + 1}, “{text}”"
    said = (found.said, text)
    columns = "".join(
        f"<div>{look.column_head(slot, '', _far(found, slot))}{_choices(choices, said)}</div>"
        for slot, choices in sorted(found.choices.items(), key=lambda item: item[0] == gpu.MERGED)
    )
    told = "".join(look.failure(text) for text in found.failed.values())
    return f'<p class="hint">{escape(what)}: what each would have said</p>{told}' + (
        f'<div class="nexts">{columns}</div>'
    )


def _far(found: NextTokens, slot: str) -> str:
    along = found.distances.get(slot, ())
    if found.position >= len(along):
        return ""
    at = along[found.position]
    unknown = f"{at.missing:.0%} on tokens that the other lacks"
    if at.nats is None:
        return f"not comparable: {unknown}"
    return f"{at.nats:.2f} nats from merged" + (f" · {unknown}" if at.missing >= 0.005 else "")


def _choices(choices: tuple[Choice, ...], said: tuple[str | None, str | None]) -> str:
    """The likeliest, with a mark at what was said: by its name, or by its text if names differ."""
    name, text = said
    marks = [" class=said" if c.token == name or c.text == text else "" for c in choices]
    rows = "".join(
        f"<li{mark}><code>{_shown(c.text)}</code>"
        f'<i style="width:{100 * c.probability:.0f}%"></i><b>{c.probability:.0%}</b></li>'
        for c, mark in zip(choices, marks, strict=True)
    )
    return f"<ol>{rows}</ol>"


def _shown(text: str) -> str:
    """Blanks and line ends can be seen."""
    return escape(text).replace(" ", "␣").replace("\n", "⏎") or "∅"
