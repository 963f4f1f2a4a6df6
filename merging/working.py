"""Does a job on this process's device: has merges and parents there as they find room, asks them,
and tries once more, smaller, where memory runs out.

It knows the library and what a job may ask; not who asks, nor in which process it is.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from merging import making, sanity, sweep
from merging.chat import Message, Question, Reply, answer
from merging.errors import MergeError
from merging.inside import inside
from merging.job import Asking, Event, Job, Merged, Merging, Place, Sweeping
from merging.library import Library, Loaded, NoRoomError, load_parent, size_of
from merging.machines import advice
from merging.making import EVERY, in_turn, seldom
from merging.memory import ALONE, TOLD, Size, ran_out, size
from merging.merge import Progress, outcomes
from merging.nexttoken import next_tokens
from merging.plan import Plan, plan
from merging.recipe import Recipe
from merging.samples import Sample, summed


@dataclass(frozen=True)
class _Run:
    """A job on its way: how its models share the device, and what became of it so far.

    `smaller` where memory ran out before. `plans` are those of merges that must be made, `ended`
    the answers that are there, by question and column; `outcomes` one a question and round.
    """

    job: Job
    library: Library
    plans: Mapping[str, Plan]
    way: str = "all at once"
    smaller: bool = False
    ended: dict[tuple[int, str], str] = field(default_factory=dict)
    outcomes: list[MergeError | None] = field(default_factory=list)

    @property
    def parts(self) -> bool:
        """Whether models come in parts that would have room as a whole."""
        return self.smaller and self.way == "in parts"


def work(job: Job, library: Library) -> Iterator[Event]:
    """Have the job's merges ready, and ask. Raises MergeError.

    If memory runs out in spite of the plan, what is left of the job is done once more, smaller.
    """
    run = _Run(job, library, _plans(job, library))
    way, *less = _ways(run)
    run = replace(run, way=way)
    if (yield from _whether_done(run)):
        return
    run = replace(run, way=less[0] if less else way, smaller=True)
    if not (yield from _whether_done(run)):
        raise MergeError(
            f"The memory ran out twice, though {TOLD[run.way]}: choose smaller models, or ask "
            "for shorter answers."
        )


def _whether_done(run: _Run) -> Generator[Event, None, bool]:
    """Do what is left; False if memory ran out on the way, and what nobody uses has been let go."""
    try:
        for event in _done(run):
            yield _noted(event, run) if run.smaller else event
    except Exception as error:
        if not ran_out(error):
            raise
        said = str(error).partition("\n")[0]
        logging.getLogger(__name__).warning("Memory ran out (%s): %s", run.way, said)
    else:
        return True
    run.library.free()  # here, where the error no longer holds what was being made
    return False


def _noted(event: Event, run: _Run) -> Event:
    if not isinstance(event, Reply | Merged):
        return event
    told = f"The memory ran out: what nobody used was let go, and now {TOLD[run.way]}."
    return replace(event, notice=f"{told} {event.notice or ''}".rstrip())


def _plans(job: Job, library: Library) -> dict[str, Plan]:
    """Of the merges that must be made, by identity."""
    missing = {m.identity: m for m in job.merges.values() if not library.has(m.identity)}
    return {identity: _planned(m) for identity, m in missing.items() if not m.written()}


def _planned(merging: Merging) -> Plan:
    sources = {place.name: place.open() for place in merging.parents}
    return plan(Recipe.from_yaml(merging.recipe), sources)


def _ways(run: _Run) -> tuple[str, ...]:
    """How the models can share the device, the best way first. Raises MergeError if in none."""
    if run.job.inspection:  # all read one answer together, or a sentence says what has no room
        return ("all at once",)
    library = run.library
    merges = {m.identity: _size(m, run) for m in run.job.merges.values()}
    parents = [place.open() for place in _asked(run.job).values()]
    if found := library.ways(merges, parents):
        return found
    sizes = [*merges.values()], [size_of(source, library.device) for source in parents]
    largest = max(each.whole for each in (*sizes[0], *sizes[1]))
    raise MergeError(
        f"A model takes {largest / 1e9:.1f} GB of memory, and {library.budget / 1e9:.1f} GB are "
        f"free for models here: {advice(*sizes)}."
    )


def _size(merging: Merging, run: _Run) -> Size:
    """Bytes of a merge, which is planned, here, or written."""
    library = run.library
    if decided := run.plans.get(merging.identity):
        width = making.dtype_of(decided, library).itemsize
        return size({step.name: width * step.size for step in decided.steps})
    if written := merging.written():
        return size_of(written, library.device)
    held = library.shelf.get(merging.identity)
    return Size(held.size, held.size) if held else Size(0, 0)


def _done(run: _Run) -> Iterator[Event]:
    job, library = run.job, run.library
    if job.sweep:
        yield from _swept(job.sweep, library)
    with ExitStack() as kept:  # merges that stay while parents come and go
        for merges, parents in _rounds(run):
            with ExitStack() as stack:
                models: dict[str, Loaded] = {}
                lent = stack if run.way in ALONE else kept
                for column, merging in merges.items():
                    make = partial(_in_turn, merging, run)
                    yield from _patiently(run, make)
                    # borrowed at once: the next merge, and parents, could push it out
                    models[column] = lent.enter_context(_merged(library, merging.identity))
                yield from _patiently(run, partial(_lent, run, parents, stack, models))
                yield from _answers(run, models)
                if job.inspection:
                    yield from next_tokens(job.inspection, models, library.pasts)
                for merging in merges.values() if job.check else ():
                    yield from _checked(merging, library)
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


def _asked(job: Job) -> dict[str, Place]:
    """The models of the columns that are no merges, each once."""
    places = {place.name: place for place in job.places}
    return {name: places[name] for name in sorted(set(job.columns.values()))}


def _patiently(run: _Run, take: Callable[[], Iterator[Event]]) -> Iterator[Event]:
    """Take what needs room; who holds nothing meanwhile waits for what is lent to others."""
    while True:
        try:
            yield from take()
        except NoRoomError:
            if run.way not in ALONE or not run.library.lending():
                raise
        else:
            return
        yield Progress("others' answers", 0, 1, 0.0, 0.0, 0.0, "wait")
        time.sleep(EVERY)


def _lent(
    run: _Run, parents: Collection[str], stack: ExitStack, models: dict[str, Loaded]
) -> Iterator[Event]:
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


def _in_turn(merging: Merging, run: _Run) -> Iterator[Event]:
    return in_turn(run.library, _made(merging, run))


def _made(merging: Merging, run: _Run) -> Generator[Event, None, None]:
    """Find the merge, or make it."""
    if run.library.has(merging.identity) or _read(merging, run):
        known = run.library.known.get(f"merged {merging.identity}")
        yield replace(known or Merged(merging.identity, 0.0, {}), seconds=0.0)
    else:
        yield from _merge(merging, run)


def _read(merging: Merging, run: _Run) -> bool:
    """Whether the merge was found as files, and is here now."""
    library, written = run.library, merging.written()
    if written is None:
        return False
    whole = size_of(written, library.device).whole
    room = library.room_in_parts(whole, parts=run.parts)
    library.make_room(library.size_with(whole, room))
    try:
        library.publish(merging.identity, load_parent(written, library.device, room))
    except MergeError:  # they were removed meanwhile
        return False
    return True


def _merge(merging: Merging, run: _Run) -> Iterator[Event]:
    """Merge into a new model on the shelf; what is chatting meanwhile stays as it is."""
    library, start, samples = run.library, time.monotonic(), dict[str, Sample]()
    decided = run.plans.get(merging.identity) or _planned(merging)
    whole = making.size_of(decided, library)
    room = library.room_in_parts(whole, parts=run.parts)
    library.make_room(library.size_with(whole, room))
    loaded, tally = yield from seldom(making.made(decided, library, samples, room=room))
    library.publish(merging.identity, loaded)
    sums = summed(samples)
    figures = inside(decided, sums, outcomes(decided, making.numbers(decided, library)))
    found = sanity.signs(decided, sums, figures.whole if figures else None)
    library.note(f"signs {merging.identity}", found)
    done = Merged(merging.identity, time.monotonic() - start, tally, figures)
    library.note(f"merged {merging.identity}", done)  # for whoever finds it again
    yield done


def _swept(asked: Sweeping, library: Library) -> Iterator[Event]:
    recipes = {value: Recipe.from_yaml(text) for value, text in asked.recipes.items()}
    sources = {place.name: place.open() for place in asked.parents}
    return seldom(sweep.sweep(recipes, sources, asked.exam, library))


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
