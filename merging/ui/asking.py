"""What the page does when it is asked to merge or to answer: calls the core, shows its events.

Every handler takes the page and the values of its inputs, by component, and gives updates.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from merging import gpu
from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.merge import Progress
from merging.recipe import Recipe
from merging.ui import jobs, kept, look
from merging.ui.columns import SLOTS
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.layout import Page, Visit
from merging.ui.visitor import Visitor


@shows_errors("progress")
def merge(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Fetch, merge, and let the merged column answer the last question again."""
    visit: Visit = values[page.visit]
    recipe = Recipe.from_yaml(values[page.recipe] or "")
    yield {page.progress: look.bar(0, "Reading headers")}
    made, job = yield from followed(page, jobs.make(recipe, visitor), "progress")
    kept.keep(made)
    visitor = replace(visitor, pins={**visitor.pins, **made.pins})
    for event in jobs.run(job):
        if isinstance(event, Progress):
            yield {page.progress: look.progress(event)}
        elif isinstance(event, gpu.Merged):
            yield {page.progress: look.bar(1, _merged(event))}
    head = look.column_head("merged", made.title)
    visit = replace(visit, made=made, said={**visit.said, gpu.MERGED: ()})
    column = page.columns[gpu.MERGED]
    yield {page.visit: visit, page.pins: visitor.pins, column.head: head, column.chat: []}
    if values[page.again] and visit.asked:
        said = {**values, page.visit: visit}
        yield from _asked(page, visitor, said, visit.asked, (gpu.MERGED,))


@shows_errors("status")
def ask(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Put one question to all columns."""
    question = (values[page.question] or "").strip()
    if not question:
        raise MergeError("The question is empty: write something to ask.")
    yield {page.status: "", page.question: ""}
    try:
        yield from _asked(page, visitor, values, question, SLOTS)
    except MergeError:
        yield {page.question: question}  # what was typed is not lost
        raise


@shows_errors("status")
def retry(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Ask the last question once more, in place of its answers."""
    visit: Visit = values[page.visit]
    if not visit.asked:
        raise MergeError("There is nothing to retry yet: ask something first.")
    said = {slot: _before(messages, visit.asked) for slot, messages in visit.said.items()}
    values = {**values, page.visit: replace(visit, said=said)}
    yield from _asked(page, visitor, values, visit.asked, SLOTS)


def clear(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:  # noqa: ARG001
    empty: Updates = {c.chat: [] for c in page.columns.values()}
    visit: Visit = values[page.visit]
    yield empty | {page.visit: replace(visit, said={}, asked=""), page.status: ""}


def _asked(
    page: Page, visitor: Visitor, values: Values, text: str, slots: tuple[str, ...]
) -> Iterator[Updates]:
    visit: Visit = values[page.visit]
    names = _names(page, values)
    made = visit.made if gpu.MERGED in slots else None
    slots = tuple(s for s in slots if s in names or (s == gpu.MERGED and made))
    parents = {slot: names[slot] for slot in slots if slot != gpu.MERGED}
    job = yield from followed(page, jobs.job_of(parents, made, visitor), "status")
    asked = {"role": "user", "content": text}
    same = [slot for slot in slots if slot == gpu.MERGED or visit.models.get(slot) == names[slot]]
    said = {slot: (*(visit.said.get(slot, ()) if slot in same else ()), asked) for slot in slots}
    question = Question(
        {slot: _with_system(values[page.system], said[slot]) for slot in slots},
        int(values[page.tokens] or 256), float(values[page.temperature] or 0),
        int(values[page.seed] or 0),
    )  # fmt: skip
    visit = replace(
        visit, models={**visit.models, **parents}, said={**visit.said, **said}, asked=text
    )
    yield {page.visit: visit, page.status: ""} | {
        page.columns[slot].chat: list(said[slot]) for slot in slots
    }
    titles = {**names, gpu.MERGED: made.title if made else ""}
    for event in jobs.run(replace(job, question=question)):
        if isinstance(event, Reply):
            visit, updates = _replied(page, visit, said, titles, event)
            yield updates
        elif isinstance(event, Progress):
            yield {page.status: look.progress(event)}
    yield {page.status: ""}


def _replied(
    page: Page, visit: Visit, said: Mapping[str, Any], titles: Mapping[str, str], reply: Reply
) -> tuple[Visit, Updates]:
    column = page.columns[reply.column]
    answer = {"role": "assistant", "content": reply.text}
    messages = (*said[reply.column], answer)
    visit = replace(visit, said={**visit.said, reply.column: messages})
    shown = [*said[reply.column], {**answer, "content": reply.text or _silent(reply)}]
    title = look.short(titles[reply.column])
    head = look.column_head(reply.column, title, look.stats(reply))
    updates: Updates = {page.visit: visit, column.chat: shown, column.head: head}
    if reply.notice:
        updates[page.status] = look.hint(reply.notice)
    return visit, updates


def _silent(reply: Reply) -> str:
    if reply.failed:
        return reply.ended or ""
    return "…" if not reply.ended else f"*(no words: {reply.ended})*"


def followed(page: Page, steps: Any, where: str) -> Any:
    """Show the progress of steps in the page's `where`; returns what the steps return."""
    with closing(steps):
        try:
            while True:
                yield {getattr(page, where): look.progress(next(steps))}
        except StopIteration as end:
            return end.value


def _names(page: Page, values: Values) -> dict[str, str]:
    """The model of each parent's column; the base's only where it is wanted."""
    picked = {slot: values[picker] for slot, picker in page.form.pickers.items()}
    return {
        s: name for s, name in picked.items() if name and (s != "base" or values[page.show_base])
    }


def _with_system(
    system: str | None, messages: tuple[Mapping[str, str], ...]
) -> tuple[Mapping[str, str], ...]:
    if not (system or "").strip():
        return messages
    return ({"role": "system", "content": str(system)}, *messages)


def _before(messages: tuple[Mapping[str, str], ...], asked: str) -> tuple[Mapping[str, str], ...]:
    last = [i for i, m in enumerate(messages) if m == {"role": "user", "content": asked}]
    return messages[: last[-1]] if last else messages


def _merged(event: gpu.Merged) -> str:
    tally = " and ".join(f"{count} {what}" for what, count in event.tally.items())
    took = f"Merged in {event.seconds:.2f} s" if event.seconds else "Merged before, found again"
    return took + (f" · {tally} tensors" if tally else "") + _lie(event.figures)


def _lie(figures: Mapping[str, Any] | None) -> str:
    """How two parents, or their deltas, lie to each other, with twice the sample's error."""
    if not figures or len(figures["cosine"]) != 1 or figures["conflict"] is None:
        return ""
    value, error = (each["cosine"][0]["value"] for each in (figures, figures["error"]))
    return f" · cosine {value:.2f} ± {2 * error:.2f} · signs differ in {figures['conflict']:.0%}"
