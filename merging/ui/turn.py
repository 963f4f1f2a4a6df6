"""Has what needs the device wait until the same person's other requests have ended."""

import time
from collections.abc import Iterator

from merging.ui import asking, look
from merging.ui.errors import Handler, Updates, Values, shows_errors
from merging.ui.page import Page
from merging.ui.visitor import Visitor

EVERY = 0.3
"""Seconds between two looks at whether it is one's turn."""
BEFORE = "Another request of yours comes first: this one waits for it."


def in_turn(where: str, handler: Handler, *, waits: bool = False) -> Handler:
    """The same handler, which begins when its turn has come; till then the page's `where` says so.

    A second request of the same page is refused, unless it `waits`: see `Pending.request`.
    """

    @shows_errors(where)
    def begun(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
        asking.idle(page, values)
        with page.pending.request(visitor, waits=waits) as others:
            while others():
                yield {getattr(page, where): look.hint(BEFORE)}
                time.sleep(EVERY)
            yield from handler(page, visitor, values)

    return begun
