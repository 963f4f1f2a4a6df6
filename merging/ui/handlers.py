"""What the page does on each event: read the values, call the core, turn its events into updates.

Every handler takes the page and the values of its inputs, by component, and gives updates.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import gradio as gr

from merging import gpu
from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.merge import Progress
from merging.plan import plan
from merging.recipe import Recipe
from merging.sources import open_source
from merging.ui import form as forms
from merging.ui import jobs, look
from merging.ui.columns import SLOTS
from merging.ui.form import PARENTS
from merging.ui.layout import Page, Visit
from merging.ui.presets import Preset

Values = Mapping[Any, Any]
Updates = dict[Any, Any]


def shows_errors(where: str) -> Callable[[Any], Any]:
    """Turn a MergeError into a sentence that stays in the page's `where`; bugs pass through."""

    def decorate(handler: Callable[[Page, Values], Iterator[Updates]]) -> Any:
        @wraps(handler)
        def shown(page: Page, values: Values) -> Iterator[Updates]:
            try:
                yield from handler(page, values)
            except MergeError as error:
                yield {getattr(page, where): look.failure(str(error))}

        return shown

    return decorate


@shows_errors("notes")
def choose_preset(page: Page, values: Values) -> Iterator[Updates]:
    preset = next(p for p in page.presets if p.key == values[page.preset])
    yield _filled(page, preset.text) | _offer(page, preset)
    yield from _checked(page, preset.text)


def restore(page: Page, text: str, options: list[Any]) -> Iterator[Updates]:
    """Show what the browser kept, or what a link brought."""
    same = [p for p in page.presets if _same(p.text, text)]
    if same:
        yield {page.preset: same[0].key}
        yield from choose_preset(page, {page.preset: same[0].key})
    else:
        yield {page.recipe: text}
        yield from use_recipe(page, {page.recipe: text})
    if options:
        yield dict(zip(page.options(), options, strict=False))


@shows_errors("recipe_status")
def use_recipe(page: Page, values: Values) -> Iterator[Updates]:
    """Fill the form from pasted YAML. Nothing is fetched: the check waits for a click."""
    text = values[page.recipe] or ""
    yield _filled(page, text) | {page.preset: None, page.recipe_status: look.hint("Recipe in use.")}
    yield from _checked(page, text, local=True)


@shows_errors("notes")
def change_form(page: Page, values: Values) -> Iterator[Updates]:
    """A control moved: the recipe follows."""
    yield _rewritten(page, values)


@shows_errors("notes")
def change_models(page: Page, values: Values) -> Iterator[Updates]:
    """Other models or another method: the recipe follows, and is checked."""
    updates = _rewritten(page, values)
    three = bool(values[page.form.pickers["c"]])
    for key, control in page.form.controls.items():
        if key[2] == "c":
            updates[control] = gr.update(visible=three)
    updates |= forms.show_method(page.form, values[page.form.method], three)
    yield updates | _titled(page, updates[page.recipe], values[page.form.pickers["base"]])
    yield from _checked(page, updates[page.recipe])


@shows_errors("notes")
def swap(page: Page, values: Values) -> Iterator[Updates]:
    a, b = (page.form.pickers[slot] for slot in ("a", "b"))
    turned = {**values, a: values[b], b: values[a]}
    for (method, name, slot), control in page.form.controls.items():
        if slot == "a":
            other = page.form.controls[method, name, "b"]
            turned |= {control: values[other], other: values[control]}
    text = _rewritten(page, turned)[page.recipe]
    yield _filled(page, text) | {page.preset: None}
    yield from _checked(page, text)


@shows_errors("notes")
def check(page: Page, values: Values) -> Iterator[Updates]:
    yield from _checked(page, values[page.recipe])


@shows_errors("progress")
def merge(page: Page, values: Values) -> Iterator[Updates]:
    """Fetch, merge, and let the merged column answer the last question again."""
    visit: Visit = values[page.visit]
    recipe = Recipe.from_yaml(values[page.recipe] or "")
    yield {page.progress: look.bar(0, "Reading headers")}
    made, job = yield from _progress(page, jobs.make(recipe, folders=page.folders()))
    jobs.keep(made)
    for event in gpu.run(job):
        if isinstance(event, Progress):
            yield {page.progress: look.progress(event)}
        elif isinstance(event, gpu.Merged):
            yield {page.progress: look.bar(1, _merged(event))}
    head = look.column_head("merged", made.title)
    visit = replace(visit, made=made, said={**visit.said, gpu.MERGED: ()})
    column = page.columns[gpu.MERGED]
    yield {page.visit: visit, column.head: head, column.chat: []}
    if values[page.again] and visit.asked:
        yield from _asked(page, {**values, page.visit: visit}, visit.asked, (gpu.MERGED,))


@shows_errors("status")
def ask(page: Page, values: Values) -> Iterator[Updates]:
    """Put one question to all columns."""
    question = (values[page.question] or "").strip()
    if not question:
        raise MergeError("The question is empty: write something to ask.")
    yield {page.status: "", page.question: ""}
    try:
        yield from _asked(page, values, question, SLOTS)
    except MergeError:
        yield {page.question: question}  # what was typed is not lost
        raise


@shows_errors("status")
def retry(page: Page, values: Values) -> Iterator[Updates]:
    """Ask the last question once more, in place of its answers."""
    visit: Visit = values[page.visit]
    if not visit.asked:
        raise MergeError("There is nothing to retry yet: ask something first.")
    said = {slot: _before(messages, visit.asked) for slot, messages in visit.said.items()}
    values = {**values, page.visit: replace(visit, said=said)}
    yield from _asked(page, values, visit.asked, SLOTS)


def clear(page: Page, values: Values) -> Updates:
    empty: Updates = {c.chat: [] for c in page.columns.values()}
    visit: Visit = values[page.visit]
    return empty | {page.visit: replace(visit, said={}, asked=""), page.status: ""}


def fold_base(page: Page, values: Values) -> Updates:
    shown = bool(values[page.show_base] and values[page.form.pickers["base"]])
    return {page.columns["base"].box: gr.update(visible=shown)}


def _same(one: str, other: str) -> bool:
    """Whether two texts say the same."""
    try:
        return Recipe.from_yaml(one) == Recipe.from_yaml(other)
    except MergeError:
        return False


def _asked(page: Page, values: Values, text: str, slots: tuple[str, ...]) -> Iterator[Updates]:
    visit: Visit = values[page.visit]
    names = _names(page, values)
    made = visit.made if gpu.MERGED in slots else None
    slots = tuple(s for s in slots if s in names or (s == gpu.MERGED and made))
    parents = {slot: names[slot] for slot in slots if slot != gpu.MERGED}
    models = yield from _progress(page, jobs.at_hand(parents, folders=page.folders()), "status")
    asked = {"role": "user", "content": text}
    said = {slot: (*visit.said.get(slot, ()), asked) for slot in slots}
    question = Question(
        {slot: _with_system(values[page.system], said[slot]) for slot in slots},
        int(values[page.tokens] or 256), float(values[page.temperature] or 0),
        int(values[page.seed] or 0),
    )  # fmt: skip
    visit = replace(visit, said={**visit.said, **said}, asked=text)
    yield {page.visit: visit, page.status: ""} | {
        page.columns[slot].chat: list(said[slot]) for slot in slots
    }
    titles = {**names, gpu.MERGED: made.title if made else ""}
    for event in jobs.ask(question, models, made):
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
    return "…" if not reply.ended else f"*(no words: {reply.ended})*"


def _progress(page: Page, steps: Any, where: str = "progress") -> Any:
    """Show a fetch's progress on the way; returns what the fetch returns."""
    try:
        while True:
            yield {getattr(page, where): look.progress(next(steps))}
    except StopIteration as end:
        return end.value


def _names(page: Page, values: Values) -> dict[str, str]:
    """The model of each parent's column, as the recipe has them."""
    recipe = Recipe.from_yaml(values[page.recipe] or "")
    filled = forms.fill(page.form, recipe)
    base = values[page.form.pickers["base"]] if values[page.show_base] else None
    names = {"base": base} | {slot: filled[page.form.pickers[slot]] for slot in PARENTS}
    return {slot: name for slot, name in names.items() if name}


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
    return took + (f" · {tally} tensors" if tally else "")


def _rewritten(page: Page, values: Values) -> Updates:
    recipe = forms.to_recipe(page.form, values, values[page.recipe] or page.presets[0].text)
    return {page.recipe: recipe.to_yaml()}


def _filled(page: Page, text: str) -> Updates:
    recipe = Recipe.from_yaml(text)
    updates = forms.fill(page.form, recipe)
    updates |= _titled(page, text, updates[page.form.pickers["base"]])
    return updates | {page.recipe: recipe.to_yaml(), page.recipe_status: ""}


def _titled(page: Page, text: str, base: str | None) -> Updates:
    """Each parent's name at the head of its column; a third column only for a third model."""
    filled = forms.fill(page.form, Recipe.from_yaml(text))
    names = {"base": base} | {slot: filled[page.form.pickers[slot]] for slot in PARENTS}
    updates: Updates = {}
    for slot, name in names.items():
        column = page.columns[slot]
        updates[column.head] = look.column_head(slot, look.short(name or "…"))
        if slot == "c":
            updates[column.box] = gr.update(visible=bool(name))
    return updates


def _offer(page: Page, preset: Preset) -> Updates:
    questions = [[q] for q in preset.questions]
    return {page.why: look.hint(preset.why), page.examples: gr.Dataset(samples=questions)}


def _checked(page: Page, text: str, *, local: bool = False) -> Iterator[Updates]:
    """The plan's notes. `local`: only if that needs no network."""
    recipe = Recipe.from_yaml(text)
    if local and not all(name.startswith("assets/demo/") for name in recipe.names()):
        yield {page.notes: look.hint("Not checked yet: press Check, or Merge.")}
        return
    yield {page.notes: look.hint("Checking …")}
    decided = plan(recipe, find=partial(open_source, folders=page.folders()))
    yield {page.notes: look.notes(decided.notes)}
