"""What the page does when the recipe changes, by its preset, its form or its text.

Every handler takes the page and the values of its inputs, by component, and gives updates.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from merging import gpu
from merging.errors import MergeError
from merging.recipe import Recipe
from merging.ui import form as forms
from merging.ui import jobs, look, showing
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.page import Page
from merging.ui.presets import Preset
from merging.ui.visitor import Visitor


@shows_errors("notes")
def choose_preset(
    page: Page, visitor: Visitor, values: Values, *, local: bool = False
) -> Iterator[Updates]:
    preset = next(p for p in page.presets if p.key == values[page.preset])
    yield filled(page, preset.text) | _offer(page, preset)
    yield from _checked(page, visitor, preset.text, local=local)


def restore(page: Page, visitor: Visitor, text: str, options: list[Any]) -> Iterator[Updates]:
    """Show what the browser kept, or what a link brought; the first preset if it is no recipe.

    Nobody clicked: no network is used for it.
    """
    try:
        key = _preset_of(page, text)
    except MergeError as error:
        yield from restore(page, visitor, page.presets[0].text, options)
        yield {page.notes: look.failure(f"The recipe kept or linked is none: {error}")}
        return
    # first of all: what is shown meanwhile is what the browser keeps
    if options:
        yield dict(zip(page.options(), options, strict=False))
    if key:
        yield {page.preset: key}
        yield from choose_preset(page, visitor, {page.preset: key}, local=True)
    else:
        yield {page.recipe: text, page.preset: None}
        yield from open_recipe(page, visitor, {page.recipe: text})


@shows_errors("recipe_status")
def use_recipe(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Fill the form from pasted YAML. Nothing is fetched: the check waits for a click."""
    yield from _used(page, visitor, values[page.recipe] or "")


@shows_errors("notes")
def open_recipe(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Fill the form from a link: errors stand where somebody looks who has unfolded nothing yet."""
    yield from _used(page, visitor, values[page.recipe] or "")


def _used(page: Page, visitor: Visitor, text: str) -> Iterator[Updates]:
    said = {page.preset: None, page.why: "", page.recipe_status: look.hint("Recipe in use.")}
    yield filled(page, text) | said
    yield from _checked(page, visitor, text, local=True)


@shows_errors("notes")
def change_form(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """A control moved: the recipe follows."""
    yield _rewritten(page, values)


@shows_errors("notes")
def change_models(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Other models or another method: the recipe follows, and is checked."""
    updates = _rewritten(page, values)
    three = bool(values[page.form.pickers["c"]])
    for key, control in page.form.controls.items():
        if key[2] == "c":
            updates[control] = gr.update(visible=three)
    name = values[page.form.method]
    updates |= forms.show_method(page.form, name, page.form.variant(name, values), three)
    yield updates | _third(page, values)
    yield from _checked(page, visitor, updates[page.recipe])


@shows_errors("notes")
def change_variant(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Another definition of the method: controls that it has no use for are switched off."""
    text = _rewritten(page, values)[page.recipe]
    yield filled(page, text)
    yield from _checked(page, visitor, text)


@shows_errors("notes")
def swap(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    a, b = (page.form.pickers[slot] for slot in ("a", "b"))
    turned = {**values, a: values[b], b: values[a]}
    for (method, name, slot), control in page.form.controls.items():
        if slot == "a":
            other = page.form.controls[method, name, "b"]
            turned |= {control: values[other], other: values[control]}
    text = _rewritten(page, turned)[page.recipe]
    yield filled(page, text) | {page.preset: None}
    yield from _checked(page, visitor, text)


@shows_errors("notes")
def check(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    yield from _checked(page, visitor, values[page.recipe])


def title(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    yield showing.heads(page, values[page.visit], values)


def fold_base(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    shown = bool(values[page.show_base] and values[page.form.pickers["base"]])
    yield {page.columns["base"].box: gr.update(visible=shown)}


def _preset_of(page: Page, text: str) -> str | None:
    recipe = Recipe.from_yaml(text)
    return next((p.key for p in page.presets if Recipe.from_yaml(p.text) == recipe), None)


def _rewritten(page: Page, values: Values) -> Updates:
    recipe = forms.to_recipe(page.form, values, values[page.recipe] or page.presets[0].text)
    return {page.recipe: recipe.to_yaml()}


def filled(page: Page, text: str) -> Updates:
    """The form as a recipe has it. Raises MergeError if the text is none."""
    recipe = Recipe.from_yaml(text)
    updates = forms.fill(page.form, recipe)
    return updates | _third(page, updates) | {page.recipe: recipe.to_yaml(), page.recipe_status: ""}


def _third(page: Page, picked: Values) -> Updates:
    """A third column only for a third model."""
    return {page.columns["c"].box: gr.update(visible=bool(picked[page.form.pickers["c"]]))}


def _offer(page: Page, preset: Preset) -> Updates:
    questions = [[q] for q in preset.questions]
    return {page.why: look.hint(preset.why), page.examples: gr.Dataset(samples=questions)}


def _checked(page: Page, visitor: Visitor, text: str, *, local: bool = False) -> Iterator[Updates]:
    """The plan's notes, and the commits that it pinned. `local`: only if that needs no network."""
    recipe = Recipe.from_yaml(text)
    if local and not all(name.startswith("assets/demo/") for name in recipe.names()):
        yield {page.notes: look.hint("Not checked yet: press Check, or Merge."), page.sizes: None}
        return
    yield {page.notes: look.hint("Checking …"), page.sizes: None}
    decided, notes = jobs.check(recipe, replace(visitor, pins={}))
    pins = {page.pins: jobs.pins_of(recipe, decided)}
    yield {page.notes: look.notes(notes), page.sizes: gpu.sizes(decided)} | pins
