"""What the page does when it is asked to merge or to answer: calls the core, shows its events.

Every handler takes the page and the values of its inputs, by component, and gives updates.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from secrets import randbits
from typing import Any

from merging import gpu
from merging.chat import Message, Question, Reply
from merging.errors import MergeError
from merging.merge import Progress
from merging.recipe import Recipe
from merging.ui import blind, jobs, kept, look, showing
from merging.ui.columns import SLOTS
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.jobs import Made
from merging.ui.layout import Page
from merging.ui.transcript import Exchange
from merging.ui.visit import PINNED, Visit
from merging.ui.visitor import Visitor


@shows_errors("progress")
def merge(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Fetch, merge, and let the merged column answer the last question again."""
    visit: Visit = values[page.visit].idle()
    recipe = Recipe.from_yaml(values[page.recipe] or "")
    yield {page.progress: look.bar(0, "Reading headers"), page.sanity: ""}
    made, job = yield from followed(page, jobs.make(recipe, visitor), "progress")
    kept.keep(made)
    visitor = replace(visitor, pins={**visitor.pins, **made.pins})
    for event in jobs.run(job):
        if isinstance(event, Progress):
            yield {page.progress: look.progress(event)}
        elif isinstance(event, gpu.Merged):
            yield {page.progress: look.bar(1, _merged(event)), page.sanity: look.CHECKING}
    visit = visit.merged(made)
    yield {page.pins: visitor.pins} | showing.stage(page, visit, values)
    if values[page.again] and visit.asked:
        said = {**values, page.visit: visit}
        yield from _asked(page, visitor, said, visit.asked, (gpu.MERGED,))


@shows_errors("status")
def ask(
    page: Page, visitor: Visitor, values: Values, slots: tuple[str, ...] = SLOTS
) -> Iterator[Updates]:
    """Put one question to all columns, or to some."""
    values[page.visit].idle()
    question = (values[page.question] or "").strip()
    if not question:
        raise MergeError("The question is empty: write something to ask.")
    yield {page.status: "", page.question: ""}
    try:
        yield from _asked(page, visitor, values, question, slots)
    except MergeError:
        yield {page.question: question}  # what was typed is not lost
        raise


@shows_errors("status")
def retry(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Ask the last question once more, in place of its answers."""
    visit: Visit = values[page.visit].idle()
    if not visit.asked:
        raise MergeError("There is nothing to retry yet: ask something first.")
    visit = visit.before([slot for slot in visit.said if visit.last(slot) == visit.asked])
    yield from _asked(page, visitor, {**values, page.visit: visit}, visit.asked, SLOTS)


@shows_errors("status")
def retry_one(page: Page, visitor: Visitor, values: Values, slot: str) -> Iterator[Updates]:
    """Ask one column its last question once more, in place of its answer."""
    visit: Visit = values[page.visit].idle()
    question = visit.last(slot)
    if not question:
        raise MergeError("There is nothing to retry in this column yet: ask something first.")
    values = {**values, page.visit: visit.before([slot])}
    yield from _asked(page, visitor, values, question, (slot,))


def _asked(
    page: Page, visitor: Visitor, values: Values, text: str, slots: tuple[str, ...]
) -> Iterator[Updates]:
    visit: Visit = values[page.visit].idle()
    models = names(page, values)
    merges = {slot: made for slot, made in visit.merges.items() if slot in slots}
    slots = tuple(slot for slot in slots if slot in models or slot in merges)
    if not slots:
        raise MergeError("Nobody answers in this column yet: choose a model, or press Merge.")
    parents = {slot: models[slot] for slot in slots if slot in models}
    ready = yield from _jobs(page, parents, merges, visitor)
    question, settings = Question({}, **_sampling(page, values)), _settings(page, values)
    ballot = blind.ballot(slots, randbits(32)) if values[page.blind] and len(slots) > 1 else None
    visit = visit.put(Exchange(text, settings, parents, merges), slots, ballot)
    asked = {slot: with_system(values[page.system], visit.said[slot]) for slot in slots}
    yield {page.status: ""} | showing.stage(page, visit, values)
    try:
        for event in _answers(ready, question, asked):
            if isinstance(event, Reply):
                visit = visit.replied(event)
                yield showing.columns(page, visit, [event.column], values) | _notice(page, event)
            elif isinstance(event, Progress):
                yield {page.status: look.progress(event)}
    except MergeError:
        yield showing.stage(page, replace(visit, running=(), ballot=None), values)
        raise
    yield {page.status: ""} | showing.stage(page, visit.ended(), values)


def _jobs(
    page: Page, parents: Mapping[str, str], merges: Mapping[str, Made], visitor: Visitor
) -> Generator[Updates, None, list[gpu.Job]]:
    """What has to be asked: all at once, and then the pinned merge, since a job has one merge."""
    ready = []
    made = merges.get(gpu.MERGED)
    if parents or made:
        ready.append((yield from followed(page, jobs.job_of(parents, made, visitor), "status")))
    if PINNED in merges:
        pinned = jobs.job_of({}, merges[PINNED], visitor)
        ready.append((yield from followed(page, pinned, "status")))
    return ready


def _answers(
    ready: Sequence[gpu.Job], question: Question, asked: Mapping[str, Sequence[Message]]
) -> Iterator[gpu.Event]:
    """The jobs' events, with the pinned merge's under its own name."""
    for number, job in enumerate(ready):
        pinned = PINNED in asked and number == len(ready) - 1
        said = {gpu.MERGED: asked[PINNED]} if pinned else asked
        events = jobs.run(replace(job, question=replace(question, conversations=said)))
        with closing(events):  # type: ignore[type-var]  # a generator
            for event in events:
                if pinned and isinstance(event, Reply):
                    event = replace(event, column=PINNED)
                yield event


def _sampling(page: Page, values: Values) -> dict[str, Any]:
    return {
        "max_new_tokens": int(values[page.tokens] or 256),
        "temperature": float(values[page.temperature] or 0),
        "seed": int(values[page.seed] or 0),
    }


def _settings(page: Page, values: Values) -> dict[str, Any]:
    system = (values[page.system] or "").strip()
    return _sampling(page, values) | ({"system": system} if system else {})


def _notice(page: Page, reply: Reply) -> Updates:
    return {page.status: look.hint(reply.notice)} if reply.notice else {}


def followed(page: Page, steps: Any, where: str) -> Any:
    """Show the progress of steps in the page's `where`; returns what the steps return."""
    with closing(steps):
        try:
            while True:
                yield {getattr(page, where): look.progress(next(steps))}
        except StopIteration as end:
            return end.value


def names(page: Page, values: Values) -> dict[str, str]:
    """The model of each parent's column; the base's only where it is wanted."""
    picked = {slot: values[picker] for slot, picker in page.form.pickers.items()}
    return {
        s: name for s, name in picked.items() if name and (s != "base" or values[page.show_base])
    }


def with_system(
    system: str | None, messages: tuple[Mapping[str, str], ...]
) -> tuple[Mapping[str, str], ...]:
    if not (system or "").strip():
        return messages
    return ({"role": "system", "content": str(system)}, *messages)


def _merged(event: gpu.Merged) -> str:
    tally = " and ".join(f"{count} {what}" for what, count in event.tally.items())
    took = f"Merged in {event.seconds:.2f} s" if event.seconds else "Merged before, found again"
    return took + (f" · {tally} tensors" if tally else "") + _lie(event.figures)


def _lie(figures: Mapping[str, Any] | None) -> str:
    """How two parents, or their deltas, lie to each other, with twice the sample's error."""
    if not figures or len(figures["cosine"]) != 1 or figures["conflict"] is None:
        return ""
    value, error = (each["cosine"][0]["value"] for each in (figures, figures["error"]))
    if value is None or error is None:  # where hardly anything differs
        return ""
    return f" · cosine {value:.2f} ± {2 * error:.2f} · signs differ in {figures['conflict']:.0%}"
