"""What the page does after a merge without being asked: it has it checked, and shows the verdict.

It comes after the merged model's answer, and another merge need not wait for it. Where each job
costs a grant the merge's own job has done it.
"""

from collections.abc import Iterator
from dataclasses import replace

import gradio as gr

from merging import gpu
from merging.sanity import Verdict
from merging.ui import jobs, look
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.page import Page
from merging.ui.progress import followed
from merging.ui.visit import Visit
from merging.ui.visitor import Visitor


@shows_errors("sanity")
def check(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Judge the merge that was just made; nothing where none was, or where it is judged."""
    visit: Visit = values[page.visit]
    made = visit.merges.get(gpu.MERGED)
    if values[page.sanity] != look.CHECKING or made is None:
        yield {page.judged: gr.skip()}
        return
    job = yield from followed(page, jobs.job_of({}, {gpu.MERGED: made}, visitor), "sanity")
    works, shown = (
        None,
        look.hint("The check itself failed: the app's log says why. The merge is there."),
    )
    for event in jobs.run(replace(job, check=True)):
        if isinstance(event, Verdict):
            works, shown = event.ok, look.verdict(event)
    yield {page.judged: (made.identity, shown, works)}


def show(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The verdict, if it is still of the last merge: another one may be under way, or be made."""
    visit: Visit = values[page.visit]
    identity, line, _ = values[page.judged]
    made = visit.merges.get(gpu.MERGED)
    last = made is not None and made.identity == identity and not visit.merging
    yield {page.sanity: line if last else gr.skip()}
