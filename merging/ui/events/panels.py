"""Events of what is done with answers and merges that are there, panel by panel."""

from functools import partial
from typing import Any

import gradio as gr

from merging import gpu
from merging.ui import (
    choosing,
    comparing,
    deciding,
    drawing,
    examining,
    keeping,
    pricing,
    prompting,
    recalling,
    stepping,
    sweeping,
)  # fmt: skip
from merging.ui.blind import BAD, TIE
from merging.ui.events.binding import heard, linking, on, queued, requesting
from merging.ui.page import Page
from merging.ui.turn import ASKING, LOOKING, in_turn
from merging.ui.visit import PINNED

COPY = """(copied) => window.playground.copy(copied.text, "Answer copied.",
    "The browser did not let it be copied.")"""


def answers(page: Page) -> None:
    """Whatever is done with answers that are there."""
    drawn, quick = {page.visit, page.follow}, {"queue": False}
    on(page.follow.input, comparing.redraw, page, drawn, page.compared(), **quick)
    going = [on(page.buttons["reveal"].click, comparing.reveal, page, drawn, page.compared(),
                 **quick)]  # fmt: skip
    choices = {page.buttons["tie"]: TIE, page.buttons["bad"]: BAD}
    choices |= {booth.best: number for number, booth in enumerate(page.unnamed)}
    for button, choice in choices.items():
        handler = partial(comparing.vote, choice=choice)
        going.append(on(button.click, handler, page, drawn, page.answered(), **quick))
    for kind, name in (("md", "save-markdown"), ("json", "save-json")):
        saving = on(page.buttons[name].click, partial(comparing.save, kind=kind), page,
                     {page.visit}, {page.saved, page.status}, **quick)  # fmt: skip
        saving.then(None, page.saved, js="(file) => window.playground.save(file)")
        saving = on(page.buttons[name.replace("-", "-sheet-")].click,
                     partial(examining.save, kind=kind), page, {page.sheet},
                     {page.saved, page.sheet_status}, **quick)  # fmt: skip
        saving.then(None, page.saved, js="(file) => window.playground.save(file)")
    on(page.preset.input, examining.offer, page, {page.preset, page.rows}, {page.rows}, **quick)
    paste = "(table) => window.playground.paste(table)"
    page.buttons["paste-rows"].click(None, page.rows, page.rows, js=paste)
    pin, unpin = page.columns["merged"].buttons["pin"], page.columns[PINNED].buttons["unpin"]
    on(pin.click, comparing.pin, page, drawn, page.answered(), **quick)
    going.append(on(unpin.click, comparing.unpin, page, drawn, page.answered(), **quick))
    for gone in going:  # with the button that was pressed
        gone.then(None, js="() => window.playground.refocus()")
    copying = on(page.columns["merged"].buttons["copy"].click, comparing.copy, page, {page.visit},
                  {page.saved}, **quick)  # fmt: skip
    copying.then(None, page.saved, page.status, js=COPY)
    named = [column.buttons["wide"] for column in page.columns.values()]
    for wide in (*named, *(booth.wide for booth in page.unnamed)):
        wide.click(None, js=f"() => window.playground.enlarge('{wide.elem_id}')")
    for name, step in (("smaller", -1), ("larger", 1)):
        page.buttons[name].click(None, js=f"() => window.playground.enlargeText({step})")
    page.folded.change(None, page.folded, js="(slots) => window.playground.fold(slots)")


def tokens(page: Page) -> None:
    """Whatever looks into the merged model's answer."""
    shown = {page.looked_into, page.strip, page.token, page.bars, page.looked_status,
             *page.along.parts()}  # fmt: skip
    quick = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    waiting = {**LOOKING, **queued(page.looked_status)}
    look_into, choose = (
        in_turn("looked_status", handler, waits=True)  # neither changes what was said
        for handler in (deciding.look_into, deciding.choose)
    )
    looking = [requesting(page.buttons["look-into"], look_into, page, page.asking(), shown,
                          **waiting)]  # fmt: skip
    asked = {page.visit, page.sheet, page.pins, page.looked_into, page.token}

    def place(at: gr.SelectData) -> int:
        return int(at.index) + 1

    last = {**waiting, "trigger_mode": "always_last"}
    looking.append(on(page.token.input, choose, page, asked, shown, **last))
    clicked = page.strip.select(place, None, page.token, trigger_mode="multiple", **quick)
    looking.append(on(clicked.then, choose, page, asked, shown, **last))  # none of two is lost
    stops = [page.buttons[name].click for name in ("stop", "stop-looking")]
    stopping = on(partial(gr.on, stops), comparing.settle, page, {page.visit}, {page.status},
                   cancels=looking, queue=False)  # fmt: skip
    last = stopping.then(lambda: "", None, page.looked_status, **quick)  # what was seen stays
    heard(page.buttons["stop-looking"], stopping, last, "ends")


def sweep(page: Page) -> None:
    """Whatever merges again and again as a number moves."""
    quick, buttons = {"queue": False}, page.buttons
    asked = {*page.sweeping(), page.visit, page.sheet, page.pins, *page.options()}
    run = in_turn("swept_status", sweeping.run)
    swept = requesting(buttons["run-sweep"], run, page, asked, page.curve(), **ASKING,
                       **queued(page.swept_status))  # fmt: skip
    stops = [buttons[name].click for name in ("stop-sweep", "stop")]
    stopping = on(partial(gr.on, stops), comparing.settle, page, {page.visit}, {page.status},
                   cancels=[swept], **quick)  # fmt: skip
    last = on(stopping.then, sweeping.stop, page, {page.swept}, page.curve(), **quick)
    heard(buttons["stop-sweep"], stopping, last, "ends")
    ranged = {page.knob, page.low, page.high}
    offered = {"trigger_mode": "always_last", **quick}
    on(page.recipe.change, sweeping.offer, page, {page.recipe, page.knob}, ranged, **offered)
    on(page.knob.input, sweeping.choose, page, {page.recipe, page.knob},
        {*ranged, page.swept_status}, **offered)  # fmt: skip
    used = {page.recipe, page.swept, page.point}
    on(buttons["use-value"].click, sweeping.use, page, used,
        {*page.filled(), page.swept_status})  # fmt: skip
    for kind, name in (("md", "save-sweep-markdown"), ("json", "save-sweep-json")):
        saving = on(buttons[name].click, partial(sweeping.save, kind=kind), page, {page.swept},
                     {page.saved, page.swept_status}, **quick)  # fmt: skip
        saving.then(None, page.saved, js="(file) => window.playground.save(file)")


def prompts(page: Page) -> None:
    """Whatever shows what the models read."""
    asked = {page.visit, page.pins, page.system}
    blocks = {part for g in page.given.values() for part in (g.box, g.head, g.text)}
    on(page.buttons["show-given"].click, prompting.show, page, asked,
        {page.given_status, *blocks})  # fmt: skip


def steps(page: Page, merging: list[Any]) -> None:
    """One tensor step by step. The browser asks for it only while it is unfolded."""
    look = "(text) => window.playground.look(text)"
    for trigger in (page.steps_box.expand, page.recipe.change, *(each.then for each in merging)):
        trigger(None, page.recipe, page.steps_of, js=look)
    asked = {page.steps_of, page.tensor, page.first_row, page.first_column, page.steps_shown,
             page.pins}  # fmt: skip
    shown = {page.steps, page.steps_status, page.steps_shown, page.tensor, page.first_row,
             page.first_column}  # fmt: skip
    moved = (page.tensor, page.first_row, page.first_column)
    for trigger in (page.steps_of.change, *(part.input for part in moved)):
        stepped = on(trigger, stepping.show, page, asked, shown, queue=False,
                      trigger_mode="always_last")  # fmt: skip
        stepped.then(None, js="() => window.playground.follow()")


def pictures(page: Page) -> None:
    """Whatever opens and closes the pictures of the last merge."""
    outputs, quick = {page.drawn, *page.pictures()}, {"queue": False}
    on(page.inside.expand, drawing.opened, page, {page.visit}, outputs, **quick)
    on(page.inside.collapse, drawing.closed, page, {page.visit}, {page.drawn}, **quick)


def history(blocks: gr.Blocks, page: Page) -> None:
    """Whatever is done with earlier merges beside asking them."""
    asked, quick = {page.past, page.listing}, {"queue": False}
    for trigger in (blocks.load, page.past.change, page.past_box.expand, page.tally.change):
        on(trigger, recalling.draw, page, {page.visit, *asked}, {page.listing, page.past_box},
            **quick)  # fmt: skip
    on(page.buttons["forget-past"].click, recalling.forget, page, asked,
        {page.past, page.past_status}, **quick)  # fmt: skip
    sharing = on(page.buttons["link-past"].click, recalling.share, page, asked,
                  {page.saved, page.past_status}, **quick)  # fmt: skip
    linking(sharing.then, page, page.past_status)


def prices(page: Page) -> None:
    """What clicks will cost, where each is paid for."""
    if gpu.granted():
        moved = (page.sizes, page.merges, page.talk, page.again, page.tokens, page.rows,
                 page.show_base, page.count, page.scored_on, page.listing)  # fmt: skip
        for part in moved:
            on(part.change, pricing.show, page, page.counted(), {page.price}, queue=False,
                trigger_mode="always_last")  # fmt: skip


def files(blocks: gr.Blocks, page: Page) -> None:
    """Whatever takes a merge away: it merges on this machine's processor. Files are written one
    merge's at a time, into room that was made for them; pushes mostly wait for the Hub.
    """
    on(blocks.load, keeping.show_cache, page, {page.visit}, {page.foot})
    buttons, waiting = page.buttons, queued(page.kept_status)
    asked = {page.visit, page.push_name, page.push_public}
    offered = {page.offer, page.confirm, page.kept_status}
    making = on(buttons["files"].click, keeping.make_files, page, {page.visit},
                 {page.kept_status}, concurrency_limit=1, **waiting)  # fmt: skip
    on(buttons["push"].click, keeping.offer_push, page, asked, offered)
    pushing = on(buttons["confirm"].click, keeping.confirm_push, page, {page.offer}, offered,
                  concurrency_limit=4, **waiting)  # fmt: skip
    on(buttons["cancel"].click, keeping.cancel_push, page, {page.offer}, offered)
    buttons["stop-keeping"].click(None, cancels=[making, pushing])


def view(page: Page) -> None:
    """Whatever only changes what is seen."""
    page.tab.change(None, [page.tab], js="(slot) => window.playground.show(slot)")
    base = {page.show_base, page.form.pickers["base"]}
    for trigger in (page.show_base.change, page.form.pickers["base"].change):
        on(trigger, choosing.fold_base, page, base, {page.columns["base"].box}, queue=False)
