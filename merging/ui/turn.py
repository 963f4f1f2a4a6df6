"""Has what needs the device wait until the same person's other requests have ended; how many people
are at it at once is gradio's queue's to see to.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from merging.ui import look
from merging.ui.errors import Handler, Updates, Values, shows_errors
from merging.ui.page import Page
from merging.ui.settings import idle
from merging.ui.visitor import Visitor

MERGING: dict[str, Any] = {"concurrency_id": "merging", "concurrency_limit": 4}
"""Merges, of which one is made at a time and others fetch, and what else takes a whole machine."""
ASKING: dict[str, Any] = {"concurrency_id": "asking", "concurrency_limit": 16}
"""Questions, which take turns: a new one need not wait for long answers to end."""
LOOKING: dict[str, Any] = {"concurrency_id": "looking", "concurrency_limit": 4}
"""Looks into an answer, which may stand here waiting for what the same page asked for before."""
EVERY = 0.3
"""Seconds between two looks at whether it is one's turn."""
BEFORE = "Another request of yours comes first: this one waits for it."


def in_turn(
    where: str, handler: Handler, *, waits: bool = False, holds: Mapping[str, Any] | None = None
) -> Handler:
    """A handler that begins when its turn has come; till then the page's `where` says so.

    It then goes on from the visit as it is now: meanwhile fields in `holds` mark that as busy, so
    that nothing is written down which the handler would overwrite.
    A second request of the same page waits in the browser, and is refused here, unless it `waits`:
    see `Pending.request`.
    """

    @shows_errors(where)
    def begun(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
        visit = idle(page, values)
        with page.pending.request(visitor, waits=waits) as (others, end):
            held = holds if others() else None
            if held:
                yield {page.visit: replace(visit, **held)}
            for told in waiting(others):
                yield {getattr(page, where): look.hint(told)}
            if held:
                yield {page.visit: visit}  # free again, as the handler finds it
            going = False
            for updates in handler(page, visitor, values):
                before, going = going, _going(page, updates, going)
                if before and not going:  # it shows its end, and whoever sees that may go on
                    end()
                yield updates

    return begun


def waiting(others: Callable[[], bool]) -> Iterator[str]:
    """What one waits for, now and then until one's turn has come."""
    while others():
        yield BEFORE
        time.sleep(EVERY)


def _going(page: Page, updates: Updates, before: bool) -> bool:
    """Whether columns answer or a merge is made, by what a handler writes down; else as before."""
    if page.visit in updates:
        return bool(updates[page.visit].running or updates[page.visit].merging)
    return bool(updates[page.sheet].running) if page.sheet in updates else before
