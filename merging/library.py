"""Holds models within a memory budget and lends them; the only owner of models in a process, and
of what is kept for their next use.

It does not know what a model was merged from, or is asked.
"""

import gc
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
import torch

from merging import container
from merging.errors import MergeError
from merging.loading import Loaded, load_parent, size_of
from merging.memory import ALONE, SHARE, Size, ways
from merging.merge import Numbers
from merging.reading import Pasts
from merging.sources import Local, Source
from merging.threads import cores
from merging.turns import Line, Turns

FINDINGS = 256
"""Findings kept at most: a few hundred bytes each, or tens of kB about what a merge did."""
READ = 1 / 8
"""Share of the budget, on top of it, that keys and values of finished answers may take."""


class NoRoomError(MergeError):
    """What is lent leaves no room for this just now."""


def _key(source: Source) -> str:
    return f"{source.name} {source.stamp}"


def budget(device: str) -> int:
    """Bytes that models may take on `device`, from what is free now, in a container to it.

    Of the machine's memory at most MERGING_MEMORY_GB. Raises MergeError if that is no number.
    """
    if device == "cpu":
        free = int(SHARE * min(psutil.virtual_memory().available, container.memory()))
        return min(free, container.told("MERGING_MEMORY_GB") or free)
    return int(SHARE * torch.cuda.mem_get_info()[0])


def spare(device: str) -> int:
    """Bytes that models may take in the machine's memory beside a GPU, from what is free now.

    0 on a CPU, where the rest could only wait on the disk: a token of an answer costs a pass
    over all of it, seconds where a disk reads some GB a second.
    """
    return 0 if device == "cpu" else budget("cpu")


@dataclass
class Library:
    """Lends models by key. Least recently used ones leave when room is needed, lent ones never.

    `budget` and `spare` are bytes for models, on the device and in the machine's memory beside it;
    `aside` are those of models that are on no shelf, or none yet, by the key they may get.
    In `merging` stand all who merge, one at a time; `lock` guards the shelf alone. `pasts` has
    what its models have read, so that a follow-up question is not read from the beginning; all
    questions to them are answered in `turns`, on a GPU by one thread that drives it. `known` are
    small findings about models, which may have gone.
    """

    device: str
    budget: int
    spare: int = 0
    shelf: OrderedDict[str, Loaded] = field(default_factory=OrderedDict)
    lent: dict[str, int] = field(default_factory=dict)
    aside: Counter[str] = field(default_factory=Counter)
    kept: dict[str, Numbers] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    merging: Line = field(default_factory=Line)
    pasts: Pasts = field(init=False)
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.pasts = Pasts(int(READ * self.budget))
        self.turns = Turns(cores() if self.device == "cpu" else 1)

    def has(self, key: str) -> bool:
        return key in self.shelf

    @contextmanager
    def borrow(self, key: str, size: int, load: Callable[[], Loaded]) -> Iterator[Loaded]:
        """The model under `key`, loaded first if it is not here (about `size` bytes)."""
        with ExitStack() as stack:
            with self.lock:
                if key not in self.shelf:
                    self.make_room(size)
                    self.shelf[key] = load()
                loaded = stack.enter_context(self._lending(key))
            yield loaded

    def found(self, key: str, stack: ExitStack) -> Loaded | None:
        """The model under `key`, lent as long as the stack is open; None if it is not here."""
        with self.lock:
            return stack.enter_context(self._lending(key)) if key in self.shelf else None

    def parent(self, source: Local, *, parts: bool = False) -> AbstractContextManager[Loaded]:
        """A parent as a model, loaded first if it is not here; in `parts`, or if it must be."""
        whole = size_of(source, self.device).whole
        room = self.room_in_parts(whole, parts=parts)
        load = partial(load_parent, source, self.device, room)
        return self.borrow(_key(source), self.size_with(whole, room), load)

    def room_in_parts(self, whole: int, *, parts: bool) -> int | None:
        """What the device has for a part of a model of `whole` bytes; None if all of it is there,
        or the rest has no room beside it.

        Half where the whole was tried and memory ran out.
        """
        if parts:
            return min(whole, self.budget // 2)
        return self.budget if self.budget < whole <= self.spare else None

    def size_with(self, whole: int, room: int | None) -> int:
        """What must be free for a model: one in parts is alone, as is what waits of it beside."""
        return whole if room is None else self.budget

    def ways(self, merges: Mapping[str, Size], sources: Iterable[Local]) -> tuple[str, ...]:
        """How merges, by identity, and parents can answer: together beside what is lent to others,
        or alone once that has come back.
        """
        parents = {_key(s): size_of(s, self.device) for s in sources}
        with self.lock:
            others = {k for k, count in self.lent.items() if count} - {*merges, *parents}
            aside = sum(size for key, size in self.aside.items() if key not in merges)
            room = self.budget - aside - sum(self.shelf[key].size for key in others)
        sizes = [*merges.values()], [*parents.values()]
        now, later = (ways(*sizes, bytes, self.spare) for bytes in (room, self.budget))
        return (*(w for w in now if w not in ALONE), *(w for w in later if w in ALONE))

    @contextmanager
    def beside(self, source: Local) -> Iterator[Loaded | None]:
        """A parent that is here, or fits without another model leaving for it; None if neither."""
        with ExitStack() as lent:
            with self.lock:  # until it is lent: others could take the room
                fits = self._used() + size_of(source, self.device).whole <= self.budget
                here = fits or self.has(_key(source))
                loaded = lent.enter_context(self.parent(source)) if here else None
            yield loaded

    def note(self, key: str, finding: Any) -> None:
        """Keep a small finding under `known`; the oldest go."""
        with self.lock:
            self.known[key] = finding
            while len(self.known) > FINDINGS:
                del self.known[next(iter(self.known))]

    def publish(self, key: str, loaded: Loaded) -> None:
        """Put a finished merge on the shelf, under its identity."""
        with self.lock:
            self.shelf[key] = loaded
            self.shelf.move_to_end(key)

    def like(self, mould: str) -> Loaded | None:
        """A model of that mould, if there is one."""
        with self.lock:
            return next((m for m in self.shelf.values() if m.mould == mould), None)

    def numbers(self, parents: str) -> Numbers:
        """What merges measured on the same parents, so that the next one need not."""
        with self.lock:
            if parents not in self.kept:
                self.kept.clear()  # one set of parents at a time: theirs are the next re-merge's
                self.kept[parents] = {}
            return self.kept[parents]

    def make_room(self, size: int) -> None:
        """Let models go until `size` bytes fit.

        Raises MergeError, and lets none go, if those in use are too many; NoRoomError where it
        would fit without them.
        """
        with self.lock:
            idle = {k: loaded.size for k, loaded in self.shelf.items() if not self.lent.get(k)}
            used = self._used() - sum(idle.values())
            if used + size > self.budget:
                raise (NoRoomError if size <= self.budget else MergeError)(
                    f"This needs {size / 1e9:.1f} GB more memory, and {used / 1e9:.1f} of the "
                    f"{self.budget / 1e9:.1f} GB for models are in use: choose smaller models, or "
                    "fewer at once."
                )
            for key in idle:
                if self._used() + size > self.budget:
                    self._drop(key)

    @contextmanager
    def room(self, size: int, key: str = "") -> Iterator[None]:
        """Keep `size` bytes for a model that nobody else is lent, or is until it is published under
        its key. Raises as `make_room` does."""
        with self.lock:
            self.make_room(size)
            self.aside[key] += size
        try:
            yield
        finally:
            with self.lock:
                self.aside[key] -= size
                self.aside += Counter()  # without those at zero

    def free(self) -> None:
        """Let everything go that nobody uses just now: memory has run out."""
        with self.lock:
            for key in [key for key in self.shelf if not self.lent.get(key)]:
                self._drop(key)
            self.kept.clear()
        self.pasts.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _lending(self, key: str) -> Iterator[Loaded]:
        """Lend what is here; `lock` is held at the beginning."""
        self.shelf.move_to_end(key)
        self.lent[key] = self.lent.get(key, 0) + 1
        try:
            yield self.shelf[key]
        finally:
            with self.lock:
                self.lent[key] -= 1

    def _drop(self, key: str) -> None:
        in_parts = hasattr(self.shelf[key].model, "_hf_hook")
        del self.shelf[key]
        if in_parts:
            gc.collect()  # accelerate's hooks hold the model that holds them

    def _used(self) -> int:
        return self.aside.total() + sum(loaded.size for loaded in self.shelf.values())
