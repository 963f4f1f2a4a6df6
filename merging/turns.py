"""Threads that go round all who wait, a step each in turn, and a line for what goes one at a time;
it knows no models, only that steps end.

Who has asked for much takes no more turns than who has asked for little.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from merging.threads import cores

Step = Callable[[], bool]
"""Goes one step, and says whether there is another. It raises nothing."""


@dataclass(eq=False)
class Round:
    """One asker's steps that wait, the number under way, and a sign that one has gone."""

    waiting: deque[Step]
    under_way: int = 0
    over: bool = False
    gone: threading.Event = field(default_factory=threading.Event)


@dataclass
class Turns:
    """At most `count` threads, which come when there are steps to go and end when there are none.

    `askers` are those with steps that wait, in turn; `lock` guards everything.
    """

    count: int
    askers: deque[Round] = field(default_factory=deque)
    threads: int = 0
    lock: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def going(self, steps: Sequence[Step]) -> Iterator[threading.Event]:
        """Have each step go again and again until it says that there is no other.

        The event is set whenever one has gone. When this is left no step is under way, nor will be.
        """
        own = Round(deque(steps))
        with self.lock:
            if steps:
                self.askers.append(own)
            new = min(len(steps), self.count - self.threads)
            self.threads += new
        for _ in range(new):
            threading.Thread(target=self._work).start()
        try:
            yield own.gone
        finally:
            with self.lock:
                own.over = True
                if own in self.askers:
                    self.askers.remove(own)
                self.lock.wait_for(lambda: not own.under_way)

    def _work(self) -> None:
        threads = 0
        while turn := self._next():
            own, step, share = turn
            if share != threads:
                torch.set_num_threads(threads := share)  # a thread's own setting
            self._back(own, step if step() else None)

    def _next(self) -> tuple[Round, Step, int] | None:
        """The next asker's next step, and how many of torch's own threads it may use."""
        with self.lock:
            if not self.askers:
                self.threads -= 1
                return None
            own = self.askers.popleft()
            step = own.waiting.popleft()
            own.under_way += 1
            if own.waiting:
                self.askers.append(own)
            return own, step, max(1, cores() // self.threads)

    def _back(self, own: Round, step: Step | None) -> None:
        """A step to the end of its asker's line, and an asker without others to the end of all."""
        with self.lock:
            own.under_way -= 1
            if step and not own.over:
                if not own.waiting:
                    self.askers.append(own)
                own.waiting.append(step)
            self.lock.notify_all()
        own.gone.set()


@dataclass
class Line:
    """Lets one at a time go on, who came first before the others; the last `took` so many seconds,
    0 before there was one."""

    took: float = 0.0
    waiting: deque[object] = field(default_factory=deque)
    moved: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def joined(self) -> Iterator[Callable[[float], int]]:
        """Queue up for the block. Yields `before(seconds)`, which waits that long at most for one's
        turn and says how many are still before."""
        own = object()
        with self.moved:
            self.waiting.append(own)
        try:
            yield partial(self._before, own)
        finally:
            with self.moved:
                self.waiting.remove(own)
                self.moved.notify_all()

    def _before(self, own: object, seconds: float) -> int:
        with self.moved:
            self.moved.wait_for(lambda: self.waiting[0] is own, seconds)
            return self.waiting.index(own)
