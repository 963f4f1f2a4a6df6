"""Has a merge in memory: the one that is here, or read from its files, or made in its turn.

It knows the library and what a merge is made of; not what it will be asked.
"""

import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from merging import causes, making
from merging.errors import MergeError
from merging.inside import inside
from merging.job import Merged, Merging
from merging.library import Library
from merging.loading import Loaded, load_parent, size_of
from merging.memory import Size, size
from merging.merge import Progress
from merging.plan import Plan, plan
from merging.recipe import Recipe
from merging.samples import Sample, summed
from merging.waiting import in_turn, seldom

Steps = Generator[Progress | Merged, None, Loaded]


@dataclass(frozen=True)
class Wanted:
    """A merge that is wanted in a library, to be lent as long as a stack is open.

    `plans` are those that a job has needed so far, by identity. In `parts` it comes if it must, or
    where this is set.
    """

    merging: Merging
    library: Library
    lent: ExitStack
    plans: dict[str, Plan]
    parts: bool = False


def have(wanted: Wanted) -> Steps:
    """The merge, lent. Only where it is not here are others waited for.

    Raises NoRoomError, where there is no room for it just now, before it is made.
    """
    library = wanted.library
    if loaded := library.found(wanted.merging.identity, wanted.lent):
        yield _again(wanted)
        return loaded
    return (yield from in_turn(library, _made(wanted)))


def weight(merging: Merging, library: Library, plans: dict[str, Plan]) -> Size:
    """Bytes of a merge, which is here, written, or planned now."""
    if held := library.shelf.get(merging.identity):
        return Size(held.size, held.size)
    if written := merging.written():
        return size_of(written, library.device)
    decided = _planned(merging, plans)
    width = making.dtype_of(decided, library).itemsize
    return size({step.name: width * step.size for step in decided.steps})


def _planned(merging: Merging, plans: dict[str, Plan]) -> Plan:
    if merging.identity not in plans:
        sources = {place.name: place.open() for place in merging.parents}
        plans[merging.identity] = plan(Recipe.from_yaml(merging.recipe), sources)
    return plans[merging.identity]


def _again(wanted: Wanted) -> Merged:
    """What was said of the merge when it was made."""
    identity = wanted.merging.identity
    known = wanted.library.known.get(f"merged {identity}")
    return replace(known or Merged(identity, 0.0, {}), seconds=0.0)


def _made(wanted: Wanted) -> Steps:
    """Find the merge, which others may have made meanwhile, or read or make it."""
    loaded = wanted.library.found(wanted.merging.identity, wanted.lent) or _read(wanted)
    if loaded is None:
        return (yield from _merge(wanted))
    yield _again(wanted)
    return loaded


def _read(wanted: Wanted) -> Loaded | None:
    """The merge, if it was found as files."""
    library, written = wanted.library, wanted.merging.written()
    if written is None:
        return None
    with ExitStack() as kept:
        room = _room(size_of(written, library.device).whole, wanted, kept)
        try:
            loaded = load_parent(written, library.device, room)
        except MergeError:  # they were removed meanwhile
            return None
        return _shelved(loaded, wanted, kept)


def _merge(wanted: Wanted) -> Steps:
    """Merge into a new model on the shelf; what is chatting meanwhile stays as it is."""
    library, start, samples = wanted.library, time.monotonic(), dict[str, Sample]()
    decided = _planned(wanted.merging, wanted.plans)
    with ExitStack() as kept:
        room = _room(making.size_of(decided, library), wanted, kept)
        steps = making.made(decided, library, samples, room=room)
        loaded, tally = yield from seldom(steps)
        _shelved(loaded, wanted, kept)
    sums = summed(samples)
    figures = inside(decided, sums)
    found = causes.signs(decided, sums, figures.whole if figures else None)
    identity = wanted.merging.identity
    library.note(f"signs {identity}", found)
    done = Merged(identity, time.monotonic() - start, tally, figures)
    library.note(f"merged {identity}", done)  # for whoever finds it again
    yield done
    return loaded


def _room(whole: int, wanted: Wanted, kept: ExitStack) -> int | None:
    """Keep room for a model of so many bytes; returns what its part on the device may have."""
    library = wanted.library
    room = library.room_in_parts(whole, parts=wanted.parts)
    kept.enter_context(library.room(library.size_with(whole, room), wanted.merging.identity))
    return room


def _shelved(loaded: Loaded, wanted: Wanted, kept: ExitStack) -> Loaded:
    """Put a model in the place that was kept for it, lent before anybody could have it leave."""
    library, identity = wanted.library, wanted.merging.identity
    with library.lock:
        kept.close()
        library.publish(identity, loaded)
        library.found(identity, wanted.lent)
    return loaded
