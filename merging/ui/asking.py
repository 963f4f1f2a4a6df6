"""What the page does when it is asked to merge or to answer: calls the core, shows its events.

Every handler takes the page and the values of its inputs, by component, and gives updates.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from secrets import randbelow, randbits
from typing import Any

import gradio as gr

from merging import gpu
from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.merge import Progress
from merging.recipe import Recipe
from merging.sanity import Verdict
from merging.ui import blind, jobs, kept, look, showing
from merging.ui.columns import SLOTS
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.jobs import Made
from merging.ui.page import Page
from merging.ui.progress import undone
from merging.ui.settings import how_asked, idle, names, question_of
from merging.ui.transcript import Exchange
from merging.ui.visit import CLEARED, Visit
from merging.ui.visitor import Visitor

SEEDS = 1_000_000
"""How many a new seed is drawn from: few enough to be read out and typed."""


@shows_errors("progress")
def merge(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Fetch, merge, and let the merged column answer what was asked again, in order."""
    yield from remerged(page, visitor, values)


def remerged(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """What Merge does, for other handlers. Raises MergeError."""
    before = visit = idle(page, values)
    recipe = Recipe.from_yaml(values[page.recipe] or "")
    yield {
        page.progress: look.bar(0, "Reading headers"),
        page.sanity: "",
        page.judged: look.UNJUDGED,
        page.visit: replace(visit, merging=True),
    }
    made, job = yield from undone(page, before, _made(recipe, visitor), "progress")
    if values[page.sizes] is None:  # else the form's recipe may be another by now
        yield {page.sizes: dict(made.sizes)}
    visit = visit.merged(made)
    if values[page.again] and visit.asked:
        visit, questions = _put(page, values, visit, before.talk(), {}, {gpu.MERGED: made})
        job = replace(job, questions=questions, talk=True, stops=visit.stops)
    pins = {page.pins: {**visitor.pins, **made.pins}}
    job = replace(job, check=gpu.granted())  # elsewhere the next merge need not wait for it
    yield from _merged(page, values, before, visit, job, pins)


def _made(recipe: Recipe, visitor: Visitor) -> Generator[Any, None, tuple[Made, gpu.Job]]:
    """What a merge needs, fetched; its recipe is kept."""
    made, job = yield from jobs.make(recipe, visitor)
    kept.keep(made)
    return made, job


def _merged(
    page: Page, values: Values, before: Visit, visit: Visit, job: gpu.Job, pins: Updates
) -> Iterator[Updates]:
    """A merge's job: its progress, its answer, and whether it works if that is asked."""
    there = False
    try:
        for event in jobs.run(job):
            if isinstance(event, Progress) and not there:
                yield {page.progress: look.progress(event)}
            elif isinstance(event, gpu.Merged):
                there, visit = True, replace(visit, took=event.seconds, inside=event.figures)
                told = {page.progress: look.bar(1, _told(event)), page.sanity: look.CHECKING}
                yield told | pins | showing.stage(page, visit, values) | _notice(page, event)
            elif isinstance(event, Verdict):
                judged = (visit.made.identity if visit.made else "", look.verdict(event), event.ok)
                yield {page.sanity: judged[1], page.judged: judged}
            elif isinstance(event, Reply | gpu.Asking) and CLEARED not in visit.stops:
                visit = _heard(visit, event)
                yield _answering(page, visit, [gpu.MERGED], values) | _notice(page, event)
    except Exception:
        yield _over(page, values, visit if there else before) | {page.sanity: ""}
        raise
    if visit.running:
        yield _over(page, values, visit)


def _over(page: Page, values: Values, visit: Visit) -> Updates:
    """Nothing is under way any longer, unless Clear has written that down already."""
    if CLEARED in visit.stops:
        return {page.progress: gr.skip()}
    return showing.stage(page, visit.ended(), values)


@shows_errors("status")
def ask(
    page: Page, visitor: Visitor, values: Values, slots: tuple[str, ...] = SLOTS
) -> Iterator[Updates]:
    """Put one question to all columns, or to some."""
    idle(page, values)
    question = (values[page.question] or "").strip()
    if not question:
        raise MergeError("The question is empty: write something to ask.")
    yield from asked(page, visitor, values, question, slots)


@shows_errors("status")
def retry(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Ask the last question once more, in place of its answers."""
    visit = _asked_once(idle(page, values))
    if visit.ballot:  # the same answers with names, here or in what is saved, would tell
        visit, values = visit.withdrawn(), {**values, page.blind: True}
    visit = visit.before([slot for slot in visit.said if visit.last(slot) == visit.asked])
    yield from asked(page, visitor, values, visit.asked, SLOTS, visit)


@shows_errors("status")
def new_seed(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Retry with a seed that is drawn, and shown, so that it can be used again."""
    _asked_once(idle(page, values))
    if not values[page.temperature]:
        told = "At temperature 0 the seed changes nothing: raise the temperature in Settings first."
        yield {page.status: look.hint(told)}
        return
    seed = randbelow(SEEDS)
    yield {page.seed: seed}
    yield from retry(page, visitor, {**values, page.seed: seed})


@shows_errors("status")
def retry_one(page: Page, visitor: Visitor, values: Values, slot: str) -> Iterator[Updates]:
    """Ask one column its last question once more, in place of its answer."""
    visit = idle(page, values)
    question = visit.last(slot)
    if not question:
        raise MergeError("There is nothing to retry in this column yet: ask something first.")
    yield from asked(page, visitor, values, question, (slot,), visit.before([slot]))


@shows_errors("status")
def edit(
    page: Page, visitor: Visitor, values: Values, slot: str, place: Any, text: Any
) -> Iterator[Updates]:
    """Ask one column another question in place of one of its own and of all that followed."""
    visit = idle(page, values)
    if visit.ballot:
        raise MergeError("This would say which answer is this column's: vote first.")
    text = text.strip() if isinstance(text, str) else ""
    if not text:
        raise MergeError("The question is empty: edit it again, and write something to ask.")
    yield from asked(page, visitor, values, text, (slot,), visit.until(slot, place))


def _asked_once(visit: Visit) -> Visit:
    """The visit itself. Raises MergeError where there is no question to put again."""
    if not visit.asked:
        raise MergeError("There is nothing to retry yet: ask something first.")
    return visit


def asked(
    page: Page, visitor: Visitor, values: Values, text: str, slots: tuple[str, ...],
    since: Visit | None = None,
) -> Iterator[Updates]:  # fmt: skip
    """Put a question to those of these columns that somebody is in. Raises MergeError.

    `since`: what the conversations go on from, where that is not what the page shows.
    """
    yield from talked(page, visitor, values, (text,), slots, since)


def talked(
    page: Page, visitor: Visitor, values: Values, texts: tuple[str, ...], slots: tuple[str, ...],
    since: Visit | None = None,
) -> Iterator[Updates]:  # fmt: skip
    """Put questions one after the other, several of them to one column alone. Raises MergeError."""
    before = idle(page, values)
    visit, models = since or before, names(page, values)
    merges = {slot: made for slot, made in visit.merges.items() if slot in slots}
    slots = tuple(slot for slot in slots if slot in models or slot in merges)
    if not slots:
        raise MergeError("Nobody answers in this column yet: choose a model, or press Merge.")
    parents = {slot: models[slot] for slot in slots if slot in models}
    yield {page.status: "", page.visit: replace(before, asking=True)}
    job = yield from undone(page, before, jobs.job_of(parents, merges, visitor), "status")
    ballot = blind.ballot(slots, randbits(32)) if values[page.blind] and len(slots) > 1 else None
    visit, questions = _put(page, values, visit, texts, parents, merges, ballot)
    yield {page.status: ""} | _box(page, values, texts[0], "") | showing.stage(page, visit, values)
    job = replace(job, questions=questions, talk=True, stops=visit.stops)
    yield from _answered(page, values, before, visit, job)


def _answered(
    page: Page, values: Values, before: Visit, visit: Visit, job: gpu.Job
) -> Iterator[Updates]:
    """A question's job: what the columns say."""
    told: Updates = {}
    try:
        for event in jobs.run(job):
            if isinstance(event, Reply | gpu.Asking):
                visit = _heard(visit, event)
                told = _notice(page, event) or told
                going = isinstance(event, Reply) and visit.running
                slots = [event.column] if isinstance(event, Reply) else visit.running
                status = {} if going else {page.status: ""}  # what was waited for is here
                yield status | told | _answering(page, visit, slots, values)
            elif isinstance(event, Progress):
                yield {page.status: look.progress(event)}
    except Exception:
        failed = visit.failed(before)
        lost = failed.log == before.log  # what was typed; else it stands in a column, for Retry
        back = _box(page, values, visit.asked, visit.asked) if lost else {}
        yield back | showing.stage(page, failed, values)
        raise
    if visit.running:
        yield {page.status: ""} | told | showing.stage(page, visit.ended(), values)


def _answering(page: Page, visit: Visit, slots: Sequence[str], values: Values) -> Updates:
    """Columns as they answer; everything once all have: whoever sees that may go on."""
    if not visit.running:
        return showing.stage(page, visit, values)
    return showing.columns(page, visit, slots, values)


def _heard(visit: Visit, event: Reply | gpu.Asking) -> Visit:
    """The visit with a reply, or with a talk's next question."""
    return visit.went_on() if isinstance(event, gpu.Asking) else visit.replied(event).ended_by_all()


def _box(page: Page, values: Values, question: str, text: str) -> Updates:
    """Another text in place of the question, where it was typed."""
    return {page.question: text} if question == (values[page.question] or "").strip() else {}


def _put(  # noqa: PLR0913  # an exchange's parts
    page: Page, values: Values, visit: Visit, texts: tuple[str, ...], parents: Mapping[str, str],
    merges: Mapping[str, Made], ballot: blind.Ballot | None = None,
) -> tuple[Visit, tuple[Question, ...]]:  # fmt: skip
    """The visit with the first of these questions put to columns, and what is to be asked."""
    slots, coming = (*parents, *merges), texts[1:]
    visit = visit.put(Exchange(texts[0], how_asked(page, values), parents, merges), slots, ballot)
    later = [{"role": "user", "content": text} for text in coming]
    talks = [{s: (*visit.said[s], *later[:n]) for s in slots} for n in range(len(texts))]
    return replace(visit, coming=coming), tuple(question_of(page, values, t) for t in talks)


def _notice(page: Page, event: gpu.Event) -> Updates:
    notice = getattr(event, "notice", None)
    return {page.status: look.hint(notice)} if notice else {}


def _told(event: gpu.Merged) -> str:
    tally = " and ".join(f"{count} {what}" for what, count in event.tally.items())
    took = f"Merged in {event.seconds:.2f} s" if event.seconds else "Merged before, found again"
    lie = _lie(event.figures.whole) if event.figures else ""
    return took + (f" · {tally} tensors" if tally else "") + lie


def _lie(figures: Mapping[str, Any]) -> str:
    """How two parents, or their deltas, lie to each other, with twice the sample's error."""
    if len(figures["cosine"]) != 1 or figures["conflict"] is None:
        return ""
    value, error = (each["cosine"][0]["value"] for each in (figures, figures["error"]))
    if value is None or error is None:  # where hardly anything differs
        return ""
    return f" · cosine {value:.2f} ± {2 * error:.2f} · signs differ in {figures['conflict']:.0%}"
