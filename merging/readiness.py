"""Gets ready on a thread what the first request needs, so that the page need not wait for it.

It knows steps by what they are called, and nothing of what they do.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

EVERY = 0.3
"""Seconds between two signs of life for who waits."""


@dataclass
class _Readiness:
    """`doing` is what is under way; `over` is unset from the first step to the end of the last."""

    doing: str = ""
    over: threading.Event = field(default_factory=threading.Event)


@cache
def _own() -> _Readiness:
    """This process's; a ZeroGPU worker's is what the page's was at the fork, all over."""
    found = _Readiness()
    found.over.set()
    return found


def start(steps: Mapping[str, Callable[[], object]]) -> None:
    """Begin, and come back at once."""
    _own().doing = next(iter(steps), "")
    _own().over.clear()
    threading.Thread(target=_work, args=(steps,), name="readiness", daemon=True).start()


def doing() -> str:
    """What is under way, or nothing where all is ready."""
    return "" if _own().over.is_set() else _own().doing


def waiting() -> Iterator[str]:
    """What is under way, now and then until all is ready."""
    while not _own().over.is_set():
        yield _own().doing
        _own().over.wait(EVERY)


def _work(steps: Mapping[str, Callable[[], object]]) -> None:
    for _own().doing, step in steps.items():
        try:
            step()
        except Exception:  # whoever needs it meets the error, and is told
            logging.getLogger(__name__).exception("The start of %s failed", _own().doing)
    _own().over.set()
