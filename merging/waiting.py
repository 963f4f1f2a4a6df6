"""How steps wait, with a sign of life: for their turn to merge, and for room among models.

It knows the library that has both; not what the steps do.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

from merging.library import Library, NoRoomError
from merging.merge import Progress

EVERY = 0.15
"""Seconds between two signs of progress: each costs the page a round trip to the browser."""

T = TypeVar("T")


def in_turn(library: Library, steps: Generator[Any, None, T]) -> Generator[Any, None, T]:
    """Wait until nobody else merges, then go through steps: each merge takes all cores, and the
    next may be the same. Those before are taken to last as long as the last merge."""
    line = library.merging
    with line.joined() as before:
        while count := before(EVERY):
            others = "another merge" if count == 1 else f"{count} other merges"
            yield Progress(others, seconds_left=count * line.took, stage="wait")
        return (yield from steps)


def patiently(take: Callable[[], Generator[Any, None, T]]) -> Generator[Any, None, T]:
    """Go through steps that take room first, once others have given it back.

    Who waits must hold none, or all could wait for each other.
    """
    while True:
        try:
            return (yield from take())
        except NoRoomError:
            pass
        yield Progress("others' answers", stage="wait")
        time.sleep(EVERY)


def seldom(steps: Generator[Any, None, T]) -> Generator[Any, None, T]:
    """The same steps without signs of progress that come too soon after another."""
    shown = 0.0
    with closing(steps):
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                found: T = end.value
                return found
            if isinstance(event, Progress):
                if time.monotonic() - shown <= EVERY:
                    continue
                shown = time.monotonic()
            yield event
