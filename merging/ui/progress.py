"""Shows the progress of steps on the page, and brings back what the steps return."""

from contextlib import closing
from typing import Any

from merging.ui import look
from merging.ui.page import Page
from merging.ui.visit import Visit


def followed(page: Page, steps: Any, where: str) -> Any:
    """Show the progress of steps in the page's `where`; returns what the steps return."""
    with closing(steps):
        try:
            while True:
                yield {getattr(page, where): look.progress(next(steps))}
        except StopIteration as end:
            return end.value


def undone(page: Page, before: Visit, steps: Any, where: str) -> Any:
    """`followed`, for a visit that is marked as busy meanwhile: as before if the steps fail."""
    try:
        return (yield from followed(page, steps, where))
    except Exception:
        yield {page.visit: before}
        raise
