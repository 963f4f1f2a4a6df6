"""The one place through which the page reaches a device: a Job in, Events out.

Jobs and events are small and picklable, since on ZeroGPU they cross into a worker that may be new
at every call. Nothing relies on what an earlier call left behind: the recipe is the state.
"""

import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import spaces

from merging import sanity, templates
from merging.chat import Question, Reply, answer
from merging.errors import MergeError
from merging.library import SHARE, Library, Loaded, budget, chat_dtype
from merging.merge import Progress, Samples, default_device, merge
from merging.nexttoken import Inspection, NextTokens, next_tokens
from merging.plan import Plan, plan
from merging.recipe import Recipe
from merging.sanity import Verdict
from merging.sinks import Live
from merging.sources import Local, Remote, on_base, open_folder

EVERY = 0.15
"""Seconds between two signs of progress: each costs the page a round trip to the browser."""
ZERO_GPU = 48 * 10**9
"""Bytes of memory of a ZeroGPU slice, as documented."""
MERGED = "merged"
"""The name of the merged model's column."""


@dataclass(frozen=True)
class Place:
    """Where a parent lies on this machine, under its pinned name; `adapter` is a second folder."""

    name: str
    folder: str
    stamp: str
    adapter: str | None = None

    def open(self) -> Local:
        if self.adapter is None:
            return open_folder(Path(self.folder), self.name, self.stamp)
        names, stamps = (text.split("+") for text in (self.name, self.stamp))
        folders = (Path(self.folder), Path(self.adapter))
        base, own = map(open_folder, folders, names, stamps)
        return on_base(base, own)


@dataclass(frozen=True)
class Job:
    """Have a merge ready, then ask. `columns` maps a column to a pinned model, or MERGED to "".

    `parents` are the recipe's, `places` the models that are asked themselves. Without `recipe`
    nothing is merged; without `question` nothing is asked; `inspection` looks into an answer.
    Columns that come to be in `stops` answer no further. With `check` the merge is judged at the
    end, once, and its verdict kept.
    """

    places: tuple[Place, ...] = ()
    parents: tuple[Place, ...] = ()
    recipe: str | None = None
    identity: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    question: Question | None = None
    inspection: Inspection | None = None
    stops: Collection[str] = ()
    check: bool = False


@dataclass(frozen=True)
class Merged:
    """A merge is ready to chat. `seconds` is 0 where it was found; `tally` counts outcomes.

    `figures` are the whole model's, as `figures.estimated` has them; None where it was found.
    """

    identity: str
    seconds: float
    tally: Mapping[str, int]
    figures: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Failed:
    """A MergeError on its way out of a worker, which would pass on no more than its class."""

    text: str


Event = Progress | Merged | Reply | NextTokens | Verdict


def place(source: Local) -> Place:
    folder, *adapter = (str(part.folder) for part in source.parts)
    return Place(source.name, folder, source.stamp, *adapter)


def merge_job(decided: Plan) -> Job:
    """The job that carries out a plan whose parents are all on this machine."""
    parents = tuple(place(s) for s in decided.sources if not isinstance(s, Remote))
    return Job((), parents, decided.recipe.to_yaml(), decided.identity)


def run(job: Job) -> Iterator[Event]:
    """Do a job on the device. Raises MergeError; closing it stops the device within a token."""
    try:
        with closing(_on_device(job)) as events:
            for event in _heeding(events, job.stops):
                if isinstance(event, _Failed):
                    raise MergeError(event.text)
                yield event
    except Exception as error:
        # ZeroGPU reports a lost worker and a spent quota with gradio's Error, unknown down here
        if type(error).__module__.startswith("gradio"):
            said = getattr(error, "message", error)
            raise MergeError(f"The GPU did not finish: {said}. Try again.") from error
        raise


def _heeding(events: Iterator[Any], stops: Collection[str]) -> Iterator[Any]:
    """Nothing more of a column that was stopped: a worker of ZeroGPU cannot hear of it."""
    over = set()
    for event in events:
        if isinstance(event, Reply) and event.column in stops:
            if event.column in over:
                continue
            over.add(event.column)
            event = replace(event, ended=event.ended or "stopped")
        yield event


def seconds(job: Job) -> int:
    """GPU seconds to ask for: loading and merging by bytes, answering by tokens."""
    places = {*job.places, *job.parents}
    folders = [Path(f) for p in places for f in (p.folder, p.adapter) if f]
    files = [file for folder in folders for file in folder.glob("*.safetensors")]
    gigabytes = sum(f.stat().st_size for f in files) / 1e9
    tokens = job.question.max_new_tokens * len(job.columns) if job.question else 0
    tokens += sanity.NEW * len(sanity.PROMPTS) * job.check
    return min(120, int(5 + job.check + 3 * gigabytes + tokens / 40))


@spaces.GPU(duration=seconds)  # type: ignore[untyped-decorator]  # spaces has no types
def _on_device(job: Job) -> Iterator[Event | _Failed]:
    templates.start()  # a fresh worker has none, and the models take longer to load
    try:
        yield from _work(job, _library())
    except MergeError as error:
        yield _Failed(str(error))


def room() -> tuple[str, int]:
    """The device that jobs run on, and the bytes that models may take there.

    Of ZeroGPU the documented size of a slice is taken: outside a job its device must not be asked.
    """
    if os.environ.get("SPACES_ZERO_GPU"):
        return "cuda", int(SHARE * ZERO_GPU)
    library = _library()
    return library.device, library.budget


@cache
def _library() -> Library:
    """This process's own, made at the first job and so never before a worker's fork."""
    device = default_device()
    return Library(device, budget(device))


def _work(job: Job, library: Library) -> Iterator[Event]:
    places = {p.name: p for p in job.places}
    if job.recipe:
        yield from _made(job, library)
    if job.question or job.inspection:
        with ExitStack() as stack:
            lent = {
                model: stack.enter_context(
                    _borrow(library, places[model]) if model else _merged(library, job.identity)
                )
                for model in sorted(set(job.columns.values()))  # the merge first: parents that
            }  # are loaded could push it out
            models = {column: lent[model] for column, model in job.columns.items()}
            if job.question:
                yield from answer(job.question, models, library.pasts, library.turns, job.stops)
            if job.inspection:
                yield next_tokens(job.inspection, models, library.pasts)
    if job.recipe and job.check:
        yield from _checked(job, library)


def _made(job: Job, library: Library) -> Iterator[Event]:
    """Find the merge, or make it in turn: each takes all cores, and the next may be the same."""
    while not library.merging.acquire(timeout=EVERY):
        yield Progress("another merge", 0, 1, 0.0, 0.0, 0.0, "wait")
    try:
        if library.has(job.identity):
            yield Merged(job.identity, 0.0, {})
        else:
            yield from _merge(job, library)
    finally:
        library.merging.release()


def _merge(job: Job, library: Library) -> Iterator[Event]:
    """Merge into the live model; what is chatting meanwhile stays as it is."""
    start = time.monotonic()
    sources = {p.name: p.open() for p in job.parents}
    decided = plan(Recipe.from_yaml(job.recipe or ""), sources)
    dtype = chat_dtype(library.device)
    elements = sum(step.size for step in decided.steps)
    library.make_room(elements * dtype.itemsize if dtype else decided.size)
    live = Live(device=library.device, dtype=dtype, like=library.like)
    parents = " ".join(f"{p.name} {p.stamp}" for p in job.parents)
    parents += f" {decided.recipe.tokenizer_source}"  # it decides which rows meet
    tally: Mapping[str, int] = {}
    shown = 0.0
    samples: Samples = {}
    numbers = library.numbers(parents)
    for progress in merge(decided, live, numbers, samples=samples, device=library.device):
        tally = progress.tally
        if time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            yield progress
    library.publish(job.identity, Loaded.of(live.model, live.tokenizer, live.mould))
    figures = sanity.whole(decided, samples)
    library.note(f"signs {job.identity}", sanity.signs(decided, samples, figures))
    yield Merged(job.identity, time.monotonic() - start, tally, figures)


def _checked(job: Job, library: Library) -> Iterator[Event]:
    """A verdict on the merge; none where the check itself fails, which is no fault of the merge."""
    known = f"verdict {job.identity}"
    if known not in library.known:
        models = Recipe.from_yaml(job.recipe or "").listed()
        found = library.known.get(f"signs {job.identity}")
        start, shown = time.monotonic(), 0.0
        try:
            sources = [p.open() for p in job.parents if p.name in models]
            with _merged(library, job.identity) as merged:
                steps = sanity.check(library, merged, sources, found)
                while True:
                    next(steps)
                    if time.monotonic() - shown > EVERY:
                        shown = time.monotonic()
                        yield Progress("the merge", 1, 1, 1.0, 0.0, 0.0, "check")
        except StopIteration as end:
            spent = {"seconds": round(time.monotonic() - start, 3)}
            verdict = replace(end.value, figures={**end.value.figures, **spent})
            library.note(known, verdict)
        except Exception:
            logging.getLogger(__name__).exception("The check of a merge failed")
            return
    yield library.known[known]


def _borrow(library: Library, place: Place) -> AbstractContextManager[Loaded]:
    return library.parent(place.open())


def _merged(library: Library, identity: str) -> AbstractContextManager[Loaded]:
    def gone() -> Loaded:
        raise MergeError("This merge had to make room for others: press Merge again.")

    return library.borrow(identity, 0, gone)
