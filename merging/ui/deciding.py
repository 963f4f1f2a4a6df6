"""Where the merged model decides like whom: has all models read its answer, and shows what came of
it.

How that is drawn is `likeness`'s affair.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import gradio as gr

from merging import gpu
from merging.errors import MergeError
from merging.merge import Progress
from merging.nexttoken import Inspection, NextTokens, Read
from merging.ui import jobs, likeness, look
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.jobs import Made
from merging.ui.page import Page
from merging.ui.progress import followed
from merging.ui.settings import idle, names
from merging.ui.visitor import Visitor


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
                page.strip: gr.update(value=likeness.strip(event), visible=True),
                **page.along.hung(likeness.curve(event)),
                page.token: gr.update(
                    value=event.position + 1, maximum=len(event.tokens) + 1, visible=True
                ),
                page.bars: likeness.bars(event),
                page.looked_status: "",
            }
