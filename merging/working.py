"""Does a job on this process's device: has merges and parents there as they find room, asks them,
and tries once more, smaller, where memory runs out.

It knows the library and what a job may ask; not who asks, nor in which process it is.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from merging import knobs, sanity, sweep
from merging.causes import Signs
from merging.chat import Question, Reply, answer
from merging.conversation import Message
from merging.errors import MergeError
from merging.having import Wanted, have, weight
from merging.job import Asking, Event, Job, Merged, Merging, Place, Sweeping
from merging.library import Library, NoRoomError
from merging.loading import Loaded, size_of
from merging.machines import advice
from merging.memory import ALONE, TOLD, Size, ran_out
from merging.merge import Progress
from merging.nexttoken import next_tokens
from merging.plan import Plan
from merging.recipe import Recipe
from merging.sources import Local
from merging.waiting import EVERY, patiently, seldom

ROOM, MEMORY = "room", "memory"
"""What a job may lack on its way: others were lent the room, or the memory ran out."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Run:
    """A job on its way: how its models share the device, and what became of it so far.

    `smaller` where memory ran out before. `plans` are those of merges that were not here, `told`
    the merges that were said to be here, `ended` the answers that are there, by question and
    column; `outcomes` one a question and round.
    """

    job: Job
    library: Library
    way: str = "nothing"
    smaller: bool = False
    plans: dict[str, Plan] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    ended: dict[tuple[int, str], str] = field(default_factory=dict)
    outcomes: list[MergeError | None] = field(default_factory=list)

    @property
    def parts(self) -> bool:
        """Whether models come in parts that would have room as a whole."""
        return self.smaller and self.way == "in parts"


def work(job: Job, library: Library) -> Iterator[Event]:
    """Have the job's merges ready, and ask. Raises MergeError.

    What is left of it is done in a smaller way where others were lent the room meanwhile, and once
    where memory runs out in spite of the plan.
    """
    run = _Run(job, library)
    run = replace(run, way=_ways(run)[0])
    while lacked := (yield from _lacking(run)):
        if lacked == MEMORY:
            library.free()  # here, where the error no longer holds what was being made
        if lacked == MEMORY and run.smaller:
            raise MergeError(
                f"The memory ran out twice, though {TOLD[run.way]}: choose smaller models, or ask "
                "for shorter answers."
            )
        way, *_ = *_smaller(run), run.way
        run = replace(run, way=way, smaller=run.smaller or lacked == MEMORY)


def _lacking(run: _Run) -> Generator[Event, None, str]:
    """Do what is left; returns what it lacked, nothing if all is done."""
    try:
        for event in _done(run):
            if not _repeated(event, run):
                yield _noted(event, run) if run.smaller else event
    except NoRoomError:
        if not _smaller(run):
            raise
        return ROOM
    except Exception as error:
        if not ran_out(error):
            raise
        said = str(error).partition("\n")[0]
        logging.getLogger(__name__).warning("Memory ran out (%s): %s", run.way, said)
        return MEMORY
    return ""


def _repeated(event: Event, run: _Run) -> bool:
    """Whether it says once more that a merge is here."""
    if not isinstance(event, Merged):
        return False
    before = event.identity in run.told
    run.told.add(event.identity)
    return before and not event.seconds


def _noted(event: Event, run: _Run) -> Event:
    if not isinstance(event, Reply | Merged):
        return event
    told = f"The memory ran out: what nobody used was let go, and now {TOLD[run.way]}."
    return replace(event, notice=f"{told} {event.notice or ''}".rstrip())


def _smaller(run: _Run) -> list[str]:
    """The ways that are smaller than the job's own, as things are now."""
    order = [*TOLD]
    return [way for way in _ways(run) if order.index(way) > order.index(run.way)]


def _ways(run: _Run) -> tuple[str, ...]:
    """How the models can share the device, the best way first. Raises MergeError if in none."""
    job, library = run.job, run.library
    if job.inspection:  # all read one answer together, or a sentence says what has no room
        return ("all at once",)
    merges, parents = _needed(run)
    found = library.ways(merges, parents)
    if job.sweep:  # which goes through its models one by one
        found = tuple(way for way in found if way in ALONE)[:1]
    if found:
        return found
    sizes = [*merges.values()], [size_of(source, library.device) for source in parents]
    largest = max(each.whole for each in (*sizes[0], *sizes[1]))
    raise MergeError(
        f"A model takes {largest / 1e9:.1f} GB of memory, and {library.budget / 1e9:.1f} GB are "
        f"free for models here: {advice(*sizes)}."
    )


def _needed(run: _Run) -> tuple[dict[str, Size], list[Local]]:
    """The merges of a job, by identity, and the parents."""
    job, library = run.job, run.library
    merges = {m.identity: weight(m, library, run.plans) for m in job.merges.values()}
    parents = [place.open() for place in _asked(job).values()]
    if job.sweep:
        recipes, sources = _opened(job.sweep)
        whole = sweep.whole(recipes, sources, library)
        merges["swept"] = Size(whole, whole)  # it is never in parts
        parents += [sources[name] for name in knobs.parents_of(next(iter(recipes.values())))]
    return merges, parents


def _done(run: _Run) -> Iterator[Event]:
    job, library = run.job, run.library
    if job.sweep:
        yield from _swept(job.sweep, library)
    with ExitStack() as kept:  # merges that stay while parents come and go
        for merges, parents in _rounds(run):
            if _over(run, merges, parents):
                continue
            with ExitStack() as stack:
                models: dict[str, Loaded] = {}
                lent = stack if run.way in ALONE else kept
                for column, merging in merges.items():
                    wanted = Wanted(merging, library, lent, run.plans, run.parts)
                    models[column] = yield from _taken(run, partial(have, wanted))
                yield from _taken(run, partial(_lent, run, parents, stack, models))
                yield from _answers(run, models)
                if job.inspection:
                    yield from next_tokens(job.inspection, models, library.pasts)
                for column, merging in merges.items() if job.check else ():
                    yield from _checked(merging, models[column], library)
    if run.outcomes and (failed := run.outcomes[0]) and all(run.outcomes):
        raise failed


def _rounds(run: _Run) -> list[tuple[Mapping[str, Merging], Collection[str]]]:
    """Which merges, by column, and which parents, by name, are on the device together."""
    merges, parents = run.job.merges, [*_asked(run.job)]
    if run.way == "all at once":
        return [(merges, parents)]
    alone = [({column: merging}, ()) for column, merging in merges.items()]
    first = alone if run.way in ALONE else [(merges, ())] if merges else []
    return [*first, *(({}, (name,)) for name in parents)]


def _over(run: _Run, merges: Mapping[str, Merging], parents: Collection[str]) -> bool:
    """Whether a round has nothing left to do: its merges were told of, and all have answered."""
    job = run.job
    columns = [*merges, *(column for column, name in job.columns.items() if name in parents)]
    asked = {(number, column) for number in range(len(job.questions)) for column in columns}
    told = {merging.identity for merging in merges.values()} <= run.told
    return told and asked <= run.ended.keys() and not (job.check or job.inspection)


def _asked(job: Job) -> dict[str, Place]:
    """The models of the columns that are no merges, each once."""
    places = {place.name: place for place in job.places}
    return {name: places[name] for name in sorted(set(job.columns.values()))}


def _taken(run: _Run, take: Callable[[], Generator[Event, None, T]]) -> Generator[Event, None, T]:
    """Take what needs room, and wait for it where nothing is held meanwhile."""
    return patiently(take) if run.way in ALONE else take()


def _lent(
    run: _Run, parents: Collection[str], stack: ExitStack, models: dict[str, Loaded]
) -> Generator[Event, None, None]:
    """Put parents among the models, by column, as long as the stack is open."""
    places = _asked(run.job)
    for name in parents:
        parent = run.library.parent(places[name].open(), parts=run.parts)
        loaded = stack.enter_context(parent)
        models |= {column: loaded for column, model in run.job.columns.items() if model == name}
    yield from ()


def _answers(run: _Run, models: Mapping[str, Loaded]) -> Iterator[Event]:
    """Ask one question after the other of these models, where they have not answered it yet."""
    library, stops = run.library, run.job.stops
    for number, question in enumerate(each.capped() for each in run.job.questions):
        asked = {c: model for c, model in models.items() if (number, c) not in run.ended}
        if not asked:
            continue
        if run.job.talk:
            question = _told(question, number, run.ended)
        yield Asking(number)
        try:
            for reply in answer(question, asked, library.pasts, library.turns, stops):
                if reply.ended:
                    run.ended[number, reply.column] = reply.text
                yield reply
            run.outcomes.append(None)
        except MergeError as error:  # of which every column's reply has told
            run.outcomes.append(error)


def _told(question: Question, number: int, ended: Mapping[tuple[int, str], str]) -> Question:
    """A question of a talk with the answers to those before it, but for any without words."""
    talks: dict[str, Sequence[Message]] = {}
    for column, messages in question.conversations.items():
        first = len(messages) - 1 - number
        talk = [*messages[:first]]
        for n, asked in enumerate(messages[first:-1]):
            if text := ended.get((n, column)):
                talk += [asked, {"role": "assistant", "content": text}]
        talks[column] = (*talk, messages[-1])
    return replace(question, conversations=talks)


def _swept(asked: Sweeping, library: Library) -> Iterator[Event]:
    recipes, sources = _opened(asked)
    return seldom(sweep.sweep(recipes, sources, asked.exam, library))


def _opened(asked: Sweeping) -> tuple[dict[float, Recipe], dict[str, Local]]:
    recipes = {value: Recipe.from_yaml(text) for value, text in asked.recipes.items()}
    return recipes, {place.name: place.open() for place in asked.parents}


def _checked(merging: Merging, merged: Loaded, library: Library) -> Iterator[Event]:
    """A verdict on the merge; none where the check itself fails, which is no fault of the merge."""
    known = f"verdict {merging.identity}"
    if known not in library.known:
        models = Recipe.from_yaml(merging.recipe).listed()
        found = library.known.get(f"signs {merging.identity}") or Signs()
        start, shown = time.monotonic(), 0.0
        try:
            sources = [p.open() for p in merging.parents if p.name in models]
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
