"""The one place through which the page reaches a device, and what a call of it asks for.

It knows ZeroGPU, and where in a process jobs are done; not how.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import spaces

from merging import readiness, refusals, templates, trials
from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.job import (
    MERGED,
    Asking,
    Event,
    Job,
    Merged,
    Merging,
    Place,
    Sweeping,
    merge_job,
    place,
)
from merging.library import Library, budget, spare
from merging.memory import SHARE
from merging.merge import Progress, default_device
from merging.opening import open_source
from merging.plan import Plan
from merging.sources import Local
from merging.working import work

__all__ = [
    "MERGED", "Asking", "Bill", "Event", "Job", "Merged", "Merging", "Place", "Sweeping",
    "granted", "merge_job", "place", "room", "run", "seconds", "sizes", "warm",
]  # fmt: skip

ZERO_GPU = 48 * 10**9
"""Bytes of memory of a ZeroGPU slice, as documented."""
CHECK = 40 + trials.NEW * len(trials.PROMPTS)
"""Tokens that the check of a merge counts for: a second of reading, and its answers."""
AGAIN = 0.1
"""Price of each further merge in a sweep, as a part of the first's: the files are in memory."""
LONGEST = 120
"""GPU seconds that are asked for at most: all that a visitor without an account has in a day."""
FACTOR = 1.5
"""Factor by which ZeroGPU multiplies a duration, if `spaces` does not say: that of the half
Blackwell card that it lends by default, in spaces 0.51."""


@dataclass(frozen=True)
class _Failed:
    """A MergeError on its way out of a worker, which would pass on no more than its class."""

    text: str


def run(job: Job) -> Iterator[Event]:
    """Do a job on the device. Raises MergeError; closing it stops the device within a token.

    It waits until the start is over: a worker must not be forked in the middle of imports.
    """
    for what in readiness.waiting():
        yield Progress(what, stage="wait")
    try:
        with closing(_on_device(job)) as events:
            for event in _heeding(events, job.stops):
                if isinstance(event, _Failed):
                    raise MergeError(event.text)
                yield event
    except Exception as error:
        if granted() and (said := refusals.told(error)):
            raise MergeError(said) from error
        raise


def _heeding(events: Iterator[Any], stops: Collection[str]) -> Iterator[Any]:
    """Nothing more of a column that was stopped: a worker of ZeroGPU cannot hear of it."""
    over = set[str]()
    for event in events:
        if isinstance(event, Asking):
            over.clear()  # each question of a talk ends by itself
        if isinstance(event, Reply) and event.column in stops:
            if event.column in over:
                continue
            over.add(event.column)
            event = replace(event, ended=event.ended or "stopped")
        yield event


def price(size: int, tokens: int, characters: int = 0) -> int:
    """GPU seconds that are held against the visitor's quota before a job begins.

    They are more than the job's duration where `spaces` multiplies that.
    """
    return round(_duration(size, tokens, characters) * _factor())


def most() -> int:
    """GPU seconds that a job is held to, whatever it needs."""
    return round(int(LONGEST / _factor()) * _factor())


def _duration(size: int, tokens: int, characters: int) -> int:
    """Seconds on the GPU: loading and merging by bytes, answering by tokens, looking into an
    answer by characters, of which a token has one or more."""
    needed = int(5 + 3 * size / 1e9 + tokens / 40 + characters / 2000)
    return min(int(LONGEST / _factor()), needed)


def _factor() -> float:
    if not granted():
        return 1.0
    try:  # there on ZeroGPU alone, and no promise of `spaces`
        return float(spaces.zero.config.get_config()["duration_factor"])
    except (AttributeError, LookupError, TypeError):
        return FACTOR


@dataclass(frozen=True)
class Bill:
    """What clicks ask for, where models of `size` bytes are needed and so many `columns` answer."""

    size: int
    columns: int

    def merge(self, tokens: int, questions: int = 1) -> int:
        """A merge with its answers of so many tokens each, and its check."""
        return price(self.size, tokens * questions + CHECK)

    def ask(self, tokens: int, questions: int = 1) -> int:
        """Questions to all."""
        return price(self.size, tokens * self.columns * questions)

    def look(self, characters: int) -> int:
        """All read one answer, with its conversation."""
        return price(self.size, 0, characters * self.columns)

    def sweep(self, tokens: int, values: int) -> int:
        """Merges at so many values, each scored by so many tokens, like the columns before."""
        return price(*_swept(self.size, self.columns, tokens, values))


def sizes(plan: Plan) -> dict[str, int]:
    """Bytes of a merge's models, by their pinned names."""
    each = {s.name: s.tensors.values() for s in plan.sources}
    return {name: sum(i.size * i.dtype.itemsize for i in own) for name, own in each.items()}


def _swept(size: int, parents: int, tokens: int, values: int) -> tuple[int, int]:
    """Bytes and tokens of a sweep."""
    return size + int(AGAIN * size * values), tokens * (values + parents)


def seconds(job: Job) -> int:
    """What a job asks for, as `price` counts it."""
    return price(*_needs(job))


def _needs(job: Job) -> tuple[int, int, int]:
    """Bytes to load, tokens to say, characters to read."""
    merges = [*{*job.merges.values()}]
    places = [*({*job.places} - {*job.parents})]
    places += [parent for each in merges if not each.written() for parent in each.parents]
    places += job.sweep.parents if job.sweep else ()
    folders = [Path(f) for p in places for f in (p.folder, p.adapter) if f]
    folders += [Path(each.files) for each in merges if each.written()]
    files = [file for folder in folders for file in folder.glob("*.safetensors")]
    tokens = sum(question.max_new_tokens for question in job.questions) * len(job.answering)
    read = job.inspection.characters() if job.inspection else 0
    size = sum(file.stat().st_size for file in files)
    if job.sweep:
        parents, values = len(job.sweep.parents), len(job.sweep.recipes)
        size, said = _swept(size, parents, job.sweep.exam.tokens, values)
        tokens += said
    return size, tokens + CHECK * job.check, read


def _asked(job: Job) -> int:
    """A job's duration, as `spaces` is told it."""
    return _duration(*_needs(job))


@spaces.GPU(duration=_asked)  # type: ignore[untyped-decorator]  # spaces has no types
def _on_device(job: Job) -> Iterator[Event | _Failed]:
    templates.start()  # a fresh worker has none, and the models take longer to load
    try:
        yield from work(job, _library())
    except MergeError as error:
        yield _Failed(str(error))


def warm(models: Iterable[str]) -> None:
    """Have models of this machine say a token each, so that the first who asks need not wait.

    Part of the start, for which jobs wait. It does nothing where each job costs a grant.
    """
    if granted():
        return
    places = tuple(place(s) for s in map(open_source, models) if isinstance(s, Local))
    asked = {p.name: ({"role": "user", "content": "Hello"},) for p in places}
    columns = {name: name for name in asked}
    for _ in _on_device(Job(places, columns=columns, questions=(Question(asked, 1),))):
        pass


def granted() -> bool:
    """Whether each job costs its visitor a grant: what can be one job should be one there."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def room() -> tuple[str, int, int]:
    """The device that jobs run on, and the bytes that models may take there and beside it.

    Of ZeroGPU the documented size of a slice is taken: outside a job its device must not be asked.
    """
    if granted():
        return "cuda", int(SHARE * ZERO_GPU), spare("cuda")
    for _ in readiness.waiting():
        pass
    library = _library()
    return library.device, library.budget, library.spare


@cache
def _library() -> Library:
    """This process's own, made at the first job and so never before a worker's fork."""
    device = default_device()
    return Library(device, budget(device), spare(device))
