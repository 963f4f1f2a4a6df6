"""The one place through which the page reaches a device: a Job in, Events out.

Jobs and events are small and picklable, since on ZeroGPU they cross into a worker that may be new
at every call. Nothing relies on what an earlier call left behind: the recipe is the state.
"""

import logging
import os
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import spaces
import torch

from merging import readiness, sanity, templates, trials
from merging.chat import Question, Reply, answer
from merging.errors import MergeError
from merging.library import SHARE, Library, Loaded, budget, chat_dtype
from merging.merge import Progress, Samples, default_device, merge
from merging.nexttoken import Inspection, NextTokens, Read, next_tokens
from merging.plan import Plan, plan
from merging.recipe import Recipe
from merging.sanity import Verdict
from merging.sinks import Live
from merging.sources import Local, Remote, on_base, open_folder, open_source

EVERY = 0.15
"""Seconds between two signs of progress: each costs the page a round trip to the browser."""
ZERO_GPU = 48 * 10**9
"""Bytes of memory of a ZeroGPU slice, as documented."""
CHECK = 40 + trials.NEW * len(trials.PROMPTS)
"""Tokens that the check of a merge counts for: a second of reading, and its answers."""
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
class Merging:
    """A merge to have ready: made, or found under its `identity`. `parents` are the recipe's."""

    recipe: str
    identity: str
    parents: tuple[Place, ...]


@dataclass(frozen=True)
class Job:
    """Have merges ready, each in its column, then ask. `columns` maps the others to pinned models.

    `places` are the models that are asked themselves. `questions` are asked one after the other;
    `inspection` looks into an answer. Columns that come to be in `stops` answer no further. With
    `check` the merges are judged at the end, each once, and the verdicts kept.
    """

    places: tuple[Place, ...] = ()
    merges: Mapping[str, Merging] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    inspection: Inspection | None = None
    stops: Collection[str] = ()
    check: bool = False

    @property
    def answering(self) -> tuple[str, ...]:
        """All columns, those of merges last."""
        return (*self.columns, *self.merges)

    @property
    def parents(self) -> tuple[Place, ...]:
        """What the merges are made of, each once."""
        return tuple(dict.fromkeys(p for m in self.merges.values() for p in m.parents))


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
class Asking:
    """The replies that follow are to the job's question of this number, the first of which is 0."""

    number: int


@dataclass(frozen=True)
class _Failed:
    """A MergeError on its way out of a worker, which would pass on no more than its class."""

    text: str


Event = Progress | Merged | Asking | Reply | Read | NextTokens | Verdict


def place(source: Local) -> Place:
    folder, *adapter = (str(part.folder) for part in source.parts)
    return Place(source.name, folder, source.stamp, *adapter)


def merge_job(decided: Plan) -> Job:
    """The job that carries out a plan whose parents are all on this machine."""
    parents = tuple(place(s) for s in decided.sources if not isinstance(s, Remote))
    return Job(merges={MERGED: Merging(decided.recipe.to_yaml(), decided.identity, parents)})


def run(job: Job) -> Iterator[Event]:
    """Do a job on the device. Raises MergeError; closing it stops the device within a token.

    It waits until the start is over: a worker must not be forked in the middle of imports.
    """
    for what in readiness.waiting():
        yield Progress(what, 0, 1, 0.0, 0.0, 0.0, "wait")
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


def price(size: int, tokens: int, characters: int = 0) -> int:
    """GPU seconds to ask for: loading and merging by bytes, answering by tokens, looking into an
    answer by characters, of which a token has one or more."""
    return min(120, int(5 + 3 * size / 1e9 + tokens / 40 + characters / 2000))


def prices(plan: Plan, tokens: int) -> tuple[int, int]:
    """Of a merge with its answer and check, and of a question to all; answers of so many tokens."""
    size = sum(i.size * i.dtype.itemsize for s in plan.sources for i in s.tensors.values())
    return price(size, tokens + CHECK), price(size, tokens * (len(plan.columns) + 1))


def seconds(job: Job) -> int:
    """What a job asks for."""
    places = [*({*job.places} - {*job.parents})]
    places += [parent for merging in set(job.merges.values()) for parent in merging.parents]
    folders = [Path(f) for p in places for f in (p.folder, p.adapter) if f]
    files = [file for folder in folders for file in folder.glob("*.safetensors")]
    tokens = sum(question.max_new_tokens for question in job.questions) * len(job.answering)
    read = job.inspection.characters() if job.inspection else 0
    return price(sum(f.stat().st_size for f in files), tokens + CHECK * job.check, read)


@spaces.GPU(duration=seconds)  # type: ignore[untyped-decorator]  # spaces has no types
def _on_device(job: Job) -> Iterator[Event | _Failed]:
    templates.start()  # a fresh worker has none, and the models take longer to load
    try:
        yield from _work(job, _library())
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


def room() -> tuple[str, int]:
    """The device that jobs run on, and the bytes that models may take there.

    Of ZeroGPU the documented size of a slice is taken: outside a job its device must not be asked.
    """
    if granted():
        return "cuda", int(SHARE * ZERO_GPU)
    for _ in readiness.waiting():
        pass
    library = _library()
    return library.device, library.budget


@cache
def _library() -> Library:
    """This process's own, made at the first job and so never before a worker's fork."""
    device = default_device()
    return Library(device, budget(device))


def _work(job: Job, library: Library) -> Iterator[Event]:
    with ExitStack() as stack:
        merged: dict[str, Loaded] = {}
        for column, merging in job.merges.items():
            yield from _made(merging, library)
            # borrowed at once: the next merge, and parents that are loaded, could push it out
            merged[column] = stack.enter_context(_merged(library, merging.identity))
        if job.questions:
            yield from _answers(job, merged, library)
        if job.inspection:
            models = stack.enter_context(_together(job, library)) | merged
            yield from next_tokens(job.inspection, models, library.pasts)
    for merging in job.merges.values() if job.check else ():
        yield from _checked(merging, library)


def _answers(job: Job, merged: Mapping[str, Loaded], library: Library) -> Iterator[Event]:
    """Ask one question after the other of all who have room at the same time, then of the next.

    Raises MergeError where nobody could answer anything.
    """
    asked, answered, failed = [question.capped() for question in job.questions], 0, []
    with closing(_lent(job, merged, library)) as groups:
        for models in groups:
            for number, question in enumerate(asked):
                yield Asking(number)
                try:
                    yield from answer(question, models, library.pasts, library.turns, job.stops)
                    answered += 1
                except MergeError as error:  # of which every column's reply has told
                    failed.append(error)
    if failed and not answered:
        raise failed[0]


def _lent(
    job: Job, merged: Mapping[str, Loaded], library: Library
) -> Generator[Mapping[str, Loaded], None, None]:
    """All columns' models; where they have no room together, merges and then parent by parent."""
    if library.fits(place.open() for place in _asked(job).values()):
        with _together(job, library) as models:
            yield {**models, **merged}
        return
    if merged:
        yield merged
    for name, place in _asked(job).items():
        with library.parent(place.open()) as loaded:
            yield {column: loaded for column, model in job.columns.items() if model == name}


@contextmanager
def _together(job: Job, library: Library) -> Iterator[dict[str, Loaded]]:
    with ExitStack() as stack:
        lent = {
            name: stack.enter_context(library.parent(place.open()))
            for name, place in _asked(job).items()
        }
        yield {column: lent[name] for column, name in job.columns.items()}


def _asked(job: Job) -> dict[str, Place]:
    """The models of the columns that are no merges, each once."""
    places = {place.name: place for place in job.places}
    return {name: places[name] for name in sorted(set(job.columns.values()))}


def _made(merging: Merging, library: Library) -> Iterator[Event]:
    """Find the merge, or make it in turn: each takes all cores, and the next may be the same."""
    while not library.merging.acquire(timeout=EVERY):
        yield Progress("another merge", 0, 1, 0.0, 0.0, 0.0, "wait")
    try:
        if library.has(merging.identity):
            yield Merged(merging.identity, 0.0, {})
        else:
            yield from _merge(merging, library)
    finally:
        library.merging.release()


def _merge(merging: Merging, library: Library) -> Iterator[Event]:
    """Merge into the live model; what is chatting meanwhile stays as it is."""
    start = time.monotonic()
    sources = {p.name: p.open() for p in merging.parents}
    decided = plan(Recipe.from_yaml(merging.recipe), sources)
    dtype = chat_dtype(library.device, getattr(torch, decided.config["dtype"]))
    library.make_room(dtype.itemsize * sum(step.size for step in decided.steps))
    live = Live(device=library.device, dtype=dtype, like=library.like)
    parents = " ".join(f"{p.name} {p.stamp}" for p in merging.parents)
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
    library.publish(merging.identity, Loaded.of(live.model, live.tokenizer, live.mould))
    figures = sanity.whole(decided, samples)
    library.note(f"signs {merging.identity}", sanity.signs(decided, samples, figures))
    yield Merged(merging.identity, time.monotonic() - start, tally, figures)


def _checked(merging: Merging, library: Library) -> Iterator[Event]:
    """A verdict on the merge; none where the check itself fails, which is no fault of the merge."""
    known = f"verdict {merging.identity}"
    if known not in library.known:
        models = Recipe.from_yaml(merging.recipe).listed()
        found = library.known.get(f"signs {merging.identity}")
        start, shown = time.monotonic(), 0.0
        try:
            sources = [p.open() for p in merging.parents if p.name in models]
            with _merged(library, merging.identity) as merged:
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


def _merged(library: Library, identity: str) -> AbstractContextManager[Loaded]:
    def gone() -> Loaded:
        raise MergeError("This merge had to make room for others: press Merge again.")

    return library.borrow(identity, 0, gone)
