"""One request a person at a time, of those that need the device, in whichever of their tabs.

A person is who signed in, or else a session of the page or of a program, and never an address.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from merging.errors import MergeError
from merging.ui.visitor import Visitor

TWICE = "You have just asked for something else: wait for it, or press Stop."
MOST = 3
"""Requests of one person, the first at work. Every queue has more places: nobody takes them all."""
MANY = f"{MOST} requests of yours are under way, one after the other: wait for one, or stop it."


@dataclass(eq=False)
class _Request:
    session: str


@dataclass
class Pending:
    """Each person's requests, in the order in which they came: the first is at work."""

    requests: dict[str, list[_Request]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def request(
        self, visitor: Visitor, *, waits: bool
    ) -> Iterator[tuple[Callable[[], bool], Callable[[], None]]]:
        """Gives whether others come first, and what ends the request before the block does.

        Raises MergeError for one beyond `MOST`, and for a session's second, unless it `waits`: it
        was asked for of a page that the first is about to change.
        """
        own = _Request(visitor.session)
        with self.lock:
            mine = self.requests.setdefault(visitor.person, [])
            if not waits and any(other.session == own.session for other in mine):
                raise MergeError(TWICE)
            if len(mine) >= MOST:
                raise MergeError(MANY)
            mine.append(own)
        try:
            yield (
                (lambda: next(iter(mine), own) is not own),
                partial(self._remove, visitor.person, own),
            )
        finally:
            self._remove(visitor.person, own)

    def stop(self, visitor: Visitor) -> None:
        """A session's requests were cancelled, and may take a moment more to end."""
        for request in [*self.requests.get(visitor.person, ())]:
            if request.session == visitor.session:
                self._remove(visitor.person, request)

    def _remove(self, person: str, request: _Request) -> None:
        with self.lock:
            mine = self.requests.get(person, [])
            if request in mine:
                mine.remove(request)
            if not mine:
                self.requests.pop(person, None)
