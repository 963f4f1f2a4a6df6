"""Events of the form: what changes the recipe, helps to find models, and keeps it all."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import gradio as gr

from merging import readiness
from merging.ui import choosing, finding, look, presenting
from merging.ui import form as forms
from merging.ui.events.binding import linking, on
from merging.ui.page import Page
from merging.ui.visitor import visitor


def forming(page: Page) -> None:
    """Whatever changes the recipe, by its preset, its form or its text."""
    form, buttons = {*page.form.inputs(), page.recipe}, page.buttons
    last = {"trigger_mode": "always_last"}  # a change during a check is not lost
    on(page.preset.input, choosing.choose_preset, page, {page.preset}, page.filled(), **last)
    on(buttons["swap"].click, choosing.swap, page, form, page.filled())
    on(buttons["use"].click, choosing.use_recipe, page, {page.recipe}, page.filled())
    on(buttons["check"].click, choosing.check, page, {page.recipe}, page.checked())
    for variant in page.form.variants.values():
        on(variant.input, choosing.change_variant, page, form, page.filled(), **last)
    pickers = {*page.form.pickers.values()}
    heads = {page.columns[slot].head for slot in page.form.pickers}
    for picker in pickers:
        on(picker.change, choosing.title, page, {*pickers, page.visit}, heads, queue=False, **last)
    for picker in (*page.form.pickers.values(), page.form.method):
        on(picker.input, choosing.change_models, page, form, page.filled(), **last)
    for control in page.form.controls.values():
        on(control.input, choosing.change_form, page, form, {page.recipe, page.notes},
            queue=False, **last)  # fmt: skip
    linking(buttons["link"].click, page, page.recipe_status, page.recipe)
    fixing = on(buttons["class-link"].click, presenting.share, page, {page.recipe, page.pins},
                 {page.saved, page.recipe_status}, queue=False)  # fmt: skip
    linking(fixing.then, page, page.recipe_status, fixed=True)
    buttons["download"].click(None, [page.recipe], js="(text) => window.playground.download(text)")


def searching(page: Page) -> None:
    """Whatever helps to find models: none of it waits behind a check or a merge."""
    form, chips = {*page.form.inputs(), page.recipe}, page.relatives
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    last = {**quick, "trigger_mode": "always_last"}

    def typed(at: gr.KeyUpData, login: gr.OAuthToken | None, request: gr.Request) -> Any:
        return finding.listing(visitor(page.private(request), login), at.input_value)

    for slot, picker in page.form.pickers.items():
        at, curated = json.dumps(f"#pick-{slot} input"), json.dumps(forms.listed())
        show = f"(found) => window.playground.list({at}, found, {curated})"
        rest = f"() => window.playground.rest({at}, {curated})"
        answered = picker.key_up(
            typed, None, [page.found, page.silence], trigger_mode="multiple", **quick
        )
        answered.then(None, page.found, picker, js=show)
        picker.blur(None, None, picker, js=rest)
        if slot != "base":
            on(picker.input, partial(finding.relatives, slot), page, {*form, page.looked},
                {chips, page.looked}, **last)  # fmt: skip
    click = chips.click(lambda row: row[0], chips, page.taken, **quick)  # before the chips change
    on(click.then, finding.take, page, {*form, page.taken}, page.filled())
    on(click.then, finding.further, page, {*form, page.taken}, {chips, page.looked}, **quick)
    others = [page.preset.input, page.buttons["swap"].click, page.buttons["use"].click]
    gr.on(others, lambda: gr.Dataset(visible=False), None, chips, **quick)


def remembering(blocks: gr.Blocks, page: Page) -> None:
    """Form and recipe survive a reload; a link only fills the form."""

    def restore(values: Any, login: gr.OAuthToken | None, request: gr.Request) -> Iterator[Any]:
        who = visitor(page.private(request), login)
        yield from presenting.restore(page, who, values, request)

    def remember(values: Any, request: gr.Request) -> Any:
        return presenting.remembered(page, values, request)

    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    blocks.load(_starting, None, page.starting, concurrency_limit=None, **hidden)
    loaded = blocks.load(restore, {page.kept}, {*page.unlocked(), *page.options()}, **hidden)
    loaded.then(None, js="() => window.playground.forget()")  # else a reload would undo edits
    # by itself and whole: gradio spoils a table that a handler's later updates leave out
    blocks.load(lambda kept: (kept or {}).get("rows") or gr.skip(), page.kept, page.rows,
                queue=False, **hidden)  # fmt: skip
    watched = [page.recipe, page.rows, *page.options()]
    gr.on(
        [part.change for part in watched], remember, {*watched, page.kept}, page.kept,
        queue=False, trigger_mode="always_last", **hidden,
    )  # fmt: skip
    own, forget = page.buttons["own"], "() => window.playground.forget(true)"
    own.click(None, js=forget)
    on(own.click, presenting.own, page, {page.recipe, page.kept}, {*page.unlocked(), page.kept})


async def _starting() -> AsyncIterator[str]:
    """What the app is still doing before it can work at full speed; no thread waits for it."""
    while what := readiness.doing():
        yield look.hint(f"Getting ready: {what} …")
        await asyncio.sleep(readiness.EVERY)
    yield ""
