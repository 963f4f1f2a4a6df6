"""The sweep: the merge made again as one number moves, its scores drawn as they come.

It runs and offers what `merging.sweep` measures, `ratings` tells and `curves` draws.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import gradio as gr

from merging import gpu, ratings
from merging.errors import MergeError
from merging.exam import Exam, exam
from merging.knobs import Knob, along, knobs, parents_of, turned
from merging.merge import Progress
from merging.ratings import Curve
from merging.recipe import Recipe
from merging.sweep import Scored
from merging.ui import choosing, curves, jobs, look, sheet, transcript
from merging.ui import form as forms
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.jobs import Made
from merging.ui.page import Page
from merging.ui.progress import followed
from merging.ui.settings import how_asked
from merging.ui.visitor import Visitor

TEXTS = "texts"
"""What a sweep is scored on, if not on the sheet's answers."""
EVERY = 0.5
"""Seconds between two looks at the progress: a slow browser has a picture to draw besides."""


@dataclass(frozen=True)
class Swept:
    """A sweep so far: which merge's, over which values, and in which columns its parents are."""

    made: Made
    curve: Curve
    span: tuple[float, float]
    slots: Mapping[str, str] = field(default_factory=dict)
    values: int = 0
    running: bool = False


def offer(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The numbers that the recipe's method has; the range of another one than was chosen."""
    try:
        known = _named(Recipe.from_yaml(values[page.recipe] or ""))
    except MergeError:  # said where it is used
        known = {}
    if not known:
        yield {page.knob: gr.update(choices=[], value=None)}
        return
    choices = [(label, key) for key, (label, _) in known.items()]
    if values[page.knob] in known:
        yield {page.knob: gr.update(choices=choices)}
        return
    key = next(iter(known))
    yield {page.knob: gr.update(choices=choices, value=key)} | _range(page, values, key)


@shows_errors("swept_status")
def choose(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Another number: the range is that of its slider."""
    yield _range(page, values, values[page.knob])


@shows_errors("swept_status")
def run(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Merge and score at each value, in one job; what was drawn before stands till then."""
    recipe = Recipe.from_yaml(values[page.recipe] or "")
    knob = _knob(recipe, values[page.knob])
    low, high = (float(values[part] or 0) for part in (page.low, page.high))
    recipes = along(recipe, knob, low, high, int(values[page.count] or 0))
    steps = jobs.sweep(recipe, recipes, exam_of(page, values), visitor)
    made, job = yield from followed(page, steps, "swept_status")
    if gpu.granted() and gpu.seconds(job) >= gpu.most():
        raise MergeError(
            f"This would take {gpu.most()} s of GPU time or more, which is the most that one "
            "sweep may have: choose fewer values, fewer questions or shorter answers."
        )
    slots = {made.pins[name]: slot for slot, name in forms.pickers_of(recipe).items() if name}
    names = [made.pins[name] for name in parents_of(recipe)]
    curve = Curve(
        replace(knob, model=knob.model and made.pins[knob.model]),
        {name: look.slot_name(slots[name]) for name in names},
    )
    yield from _points(page, Swept(made, curve, (low, high), slots, len(recipes), True), job)


def _points(page: Page, found: Swept, job: gpu.Job) -> Iterator[Updates]:
    """Draw each result as it comes."""
    start = shown = time.monotonic()
    yield {page.swept: found, page.swept_status: look.bar(0, "Scoring the parents", "Sweep")}
    try:
        for event in jobs.run(job):
            if isinstance(event, Progress) and time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                yield {page.swept_status: _far(found, event)}
            elif isinstance(event, Scored):
                found = replace(found, curve=found.curve.scored(event))
                yield _drawn(page, found)
    except Exception:
        yield _drawn(page, replace(found, running=False))
        raise
    told = f"{len(found.curve.points)} values in {time.monotonic() - start:.1f} s."
    yield _drawn(page, replace(found, running=False)) | {page.swept_status: look.hint(told)}


def stop(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Keep what has come."""
    found: Swept | None = values[page.swept]
    if found and found.running:
        done = replace(found, running=False)
        yield _drawn(page, done) | {page.swept_status: look.hint("Stopped.")}
    else:
        yield {page.swept_status: gr.skip()}


@shows_errors("swept_status")
def use(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Set the number in the recipe, and so in the form, to a value of the sweep."""
    found: Swept | None = values[page.swept]
    if found is None or values[page.point] is None:
        raise MergeError("There is no value to use yet: run the sweep first.")
    knob, value = found.curve.knob, float(values[page.point])
    written = {pinned: name for name, pinned in found.made.pins.items()}
    recipe = Recipe.from_yaml(values[page.recipe] or "")
    recipe = turned(recipe, replace(knob, model=knob.model and written[knob.model]), value)
    told = f"`{knob.name}` is {value:g} now: press Merge."
    yield choosing.filled(page, recipe.to_yaml()) | {page.swept_status: look.hint(told)}


def save(page: Page, visitor: Visitor, values: Values, kind: str) -> Iterator[Updates]:
    """The numbers so far, with the recipe, as a file."""
    found: Swept | None = values[page.swept]
    if found is None or not found.curve.points:
        told = "There is nothing to save yet: run the sweep first."
        yield {page.saved: None, page.swept_status: look.failure(told)}
        return
    curve, made = found.curve, found.made
    if kind == "json":
        known = {"recipes": transcript.recipes([made]), "models": dict(curve.called)}
        text = transcript.dumped({**known, **ratings.swept(curve)})
    else:
        table = ratings.table(*ratings.swept_rows(curve))
        text = "\n".join([f"# Sweep of {curve.title}\n", table, *transcript.recipe_parts([made])])
    yield {page.saved: transcript.file("sweep", kind, text), page.swept_status: gr.skip()}


def exam_of(page: Page, values: Values) -> Exam:
    """What is scored. Raises MergeError where nothing can be."""
    asked = sheet.read(values[page.rows] or ())
    how = how_asked(page, values)
    return exam(asked, texts=values[page.scored_on] == TEXTS, **how)


def _named(recipe: Recipe) -> dict[str, tuple[str, Knob]]:
    """A recipe's knobs by a key that another recipe's may share, with how the page calls them."""
    slots = {name: slot for slot, name in forms.pickers_of(recipe).items() if name}
    each = {knob.name for knob in knobs(recipe) if knob.model}
    found = {}
    for knob in knobs(recipe):
        slot = slots.get(knob.model or "", "")
        label = f"{knob.name} of {look.MARKS[slot]} {look.slot_name(slot)}" if slot else knob.name
        label += " of all" if knob.name in each and not slot else ""
        found[f"{knob.name} {slot}".strip()] = label, knob
    return found


def _knob(recipe: Recipe, key: str | None) -> Knob:
    known = _named(recipe)
    if key not in known:
        raise MergeError("The method has no such number any more: choose another to sweep.")
    return known[key][1]


def _range(page: Page, values: Values, key: str | None) -> Updates:
    recipe = Recipe.from_yaml(values[page.recipe] or "")
    control = knobs(recipe)[_knob(recipe, key)]
    return {page.low: control.low, page.high: control.high}


def _far(found: Swept, at: Progress) -> str:
    curve = found.curve
    done, whole = len(curve.parents) + len(curve.points), len(curve.called) + found.values
    told = f"Value {len(curve.points) + 1} of {found.values}"
    if len(curve.parents) < len(curve.called):
        told = "Scoring the parents"
    if at.stage == "wait":
        told = f"Waiting for {at.tensor}"
    return look.bar(done / whole, told, "Sweep")


def _drawn(page: Page, found: Swept) -> Updates:
    curve = found.curve
    points = [(f"{v:g}: {curves.told(curve, r)}", f"{v:g}") for v, r in curve.points.items()]
    best = curve.best()
    plot = curves.figure(curve, found.slots, found.span)
    return {
        page.swept: found,
        page.plot: gr.update(value=plot, visible=plot is not None),
        page.numbers: curves.table(curve),
        page.point: gr.update(choices=points, value=None if best is None else f"{best:g}",
                              visible=bool(points)),
        page.buttons["use-value"]: gr.update(visible=bool(points)),
    }  # fmt: skip
