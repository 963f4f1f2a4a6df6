"""Shows what each model was given to read with its last question, as its template wrote it.

It asks no device; which models these are, and that the visitor may read them, is checked anew.
"""

from collections.abc import Iterator

import gradio as gr

from merging.errors import MergeError
from merging.prompts import Prompt
from merging.ui import jobs, look
from merging.ui.columns import SLOTS, Given
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.page import Page
from merging.ui.progress import followed
from merging.ui.visit import Visit
from merging.ui.visitor import Visitor


@shows_errors("given_status")
def show(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Every column that was asked, one after the other."""
    visit: Visit = values[page.visit]
    given = {slot: visit.given(slot, values[page.system] or "") for slot in SLOTS}
    given = {slot: messages for slot, messages in given.items() if messages}
    if not given:
        raise MergeError("Nothing was asked yet: ask something, then look at what was read.")
    merges = {slot: made for slot, made in visit.merges.items() if slot in given}
    models = {s: visit.models[s] for s in given if s not in merges and s in visit.models}
    steps = jobs.job_of(models, merges, visitor)
    job = yield from followed(page, steps, "given_status")
    yield {page.given_status: look.hint("Reading templates …")}
    found = dict(jobs.prompts(job, given))
    blocks: Updates = {}  # all at once: what is shown bit by bit loses its text on the way
    for slot, block in page.given.items():
        blocks[block.box] = gr.update(visible=slot in found)
        if slot in found:
            blocks |= _block(block, look.short(visit.title(slot)), found[slot])
    yield {page.given_status: ""} | blocks


def _block(block: Given, title: str, found: Prompt | MergeError) -> Updates:
    if isinstance(found, Prompt):
        head = look.column_head(block.slot, title, _figures(found))
        return {block.head: head, block.text: gr.update(value=found.text, visible=True)}
    head = look.column_head(block.slot, title) + look.failure(str(found))
    return {block.head: head, block.text: gr.update(value="", visible=False)}


def _figures(found: Prompt) -> str:
    left_out = "" if found.whole else " · the oldest questions are left out"
    return f"{found.tokens:,} of {found.context:,} tokens · {found.template}{left_out}"
