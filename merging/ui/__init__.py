"""The page: which handler each event calls, and what launching it needs. No logic here."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request

from merging import gpu, readiness
from merging.sources import APP
from merging.ui import (
    asking,
    checking,
    choosing,
    comparing,
    deciding,
    drawing,
    examining,
    finding,
    keeping,
    look,
    presenting,
    pricing,
    prompting,
    recalling,
    stepping,
    sweeping,
)  # fmt: skip
from merging.ui import form as forms
from merging.ui.api import ASKING, LIMIT, endpoints
from merging.ui.blind import BAD, TIE
from merging.ui.errors import Handler, Updates
from merging.ui.layout import Page, layout
from merging.ui.limits import OwnPage, RequestCap
from merging.ui.routes import downloads
from merging.ui.turn import in_turn
from merging.ui.visit import PINNED
from merging.ui.visitor import visitor

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LAUNCH: dict[str, Any] = {
    "theme": look.theme(),
    "css_paths": APP / "assets" / "page.css",
    "head_paths": APP / "assets" / "page.html",
    "footer_links": ["api", "settings"],
    "ssr_mode": False,  # a second server in Node, of no use here
    "run_history": False,  # answers would stay in a shared browser
    "enable_monitoring": False,  # by default gradio tells everybody who asks how the app is used
    "state_session_capacity": 300,  # gradio keeps 0.7 MB of each page, open or long closed
    "max_file_size": "1mb",
    "max_threads": 4 * ASKING["concurrency_limit"],  # each who asks holds one, and others come
    "app_kwargs": {
        "middleware": [Middleware(RequestCap), Middleware(OwnPage)],
        "routes": [downloads(lambda request: is_private(request.app.blocks, request))],
    },
}
"""What `launch` needs beside the page. No port and no host: the environment's hold."""


def build() -> gr.Blocks:
    """The whole page. Launch it with `LAUNCH`."""
    with gr.Blocks(title="Merge playground", analytics_enabled=False) as blocks:

        def private(request: gr.Request) -> bool:
            return is_private(blocks, request)

        page = layout(private)
        _forming(page)
        _finding(page)
        _stepping(page, _running(page))
        _comparing(page)
        _deciding(page)
        _prompting(page)
        _sweeping(page)
        _recalling(blocks, page)
        _drawing(page)
        _keeping(blocks, page)
        _showing(page)
        _pricing(page)
        _remembering(blocks, page)
        endpoints(private)
    blocks.queue(max_size=128, default_concurrency_limit=8)  # a class that opens the page at once
    return blocks


def is_private(blocks: gr.Blocks, request: gr.Request | Request) -> bool:
    """Whether only this machine's own user can ask this, by the address really bound.

    The name that was asked for must be this machine's as well: a proxy here serves strangers, and
    a stranger's name can be made to mean 127.0.0.1.
    """
    bound = getattr(blocks, "server_name", None)
    asked = urlsplit(f"//{request.headers.get('host', '')}").hostname
    here = bound in LOOPBACK and asked in LOOPBACK
    return here and not blocks.share and not os.environ.get("SPACE_ID")


def _forming(page: Page) -> None:
    """Whatever changes the recipe, by its preset, its form or its text."""
    form, buttons = {*page.form.inputs(), page.recipe}, page.buttons
    last = {"trigger_mode": "always_last"}  # a change during a check is not lost
    _on(page.preset.input, choosing.choose_preset, page, {page.preset}, page.filled(), **last)
    _on(buttons["swap"].click, choosing.swap, page, form, page.filled())
    _on(buttons["use"].click, choosing.use_recipe, page, {page.recipe}, page.filled())
    _on(buttons["check"].click, choosing.check, page, {page.recipe}, page.checked())
    for variant in page.form.variants.values():
        _on(variant.input, choosing.change_variant, page, form, page.filled(), **last)
    for picker in (*page.form.pickers.values(), page.form.method):
        _on(picker.input, choosing.change_models, page, form, page.filled(), **last)
    for control in page.form.controls.values():
        _on(control.input, choosing.change_form, page, form, {page.recipe, page.notes},
            queue=False, **last)  # fmt: skip
    space = os.environ.get("SPACE_ID", "")
    say = f"(text) => window.playground.link(text, {json.dumps(space)}"
    buttons["link"].click(None, [page.recipe], js=f"{say})")
    fixing = _on(buttons["class-link"].click, presenting.share, page, {page.recipe, page.pins},
                 {page.saved, page.recipe_status}, queue=False)  # fmt: skip
    fixing.then(None, page.saved, js=f"(made) => made && ({say}, {{fixed: true}}))(made.text)")
    buttons["download"].click(None, [page.recipe], js="(text) => window.playground.download(text)")


def _finding(page: Page) -> None:
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
            _on(picker.input, partial(finding.relatives, slot), page, {*form, page.looked},
                {chips, page.looked}, **last)  # fmt: skip
    click = chips.click(lambda row: row[0], chips, page.taken, **quick)  # before the chips change
    _on(click.then, finding.take, page, {*form, page.taken}, page.filled())
    _on(click.then, finding.further, page, {*form, page.taken}, {chips, page.looked}, **quick)
    others = [page.preset.input, page.buttons["swap"].click, page.buttons["use"].click]
    gr.on(others, lambda: gr.Dataset(visible=False), None, chips, **quick)


def _running(page: Page) -> list[Any]:
    """Whatever reaches the device, and what stops it; returns the events that merge."""
    trying = _trying(page)
    run = in_turn("sheet_status", examining.run)
    examined = _on(page.buttons["run-sheet"].click, run, page, page.asking(),
                   page.examined(), **ASKING, **_queued(page.sheet_status))  # fmt: skip
    merged = {page.progress, page.sanity, page.judged, page.pins, *page.answered()}
    past = {page.past, page.listing}
    merge, recall = in_turn("progress", asking.merge), in_turn("past_status", recalling.chat)
    merging = [
        _on(page.buttons["merge"].click, merge, page, page.asking(), merged, **LIMIT,
            **_queued(page.progress)),
        _on(page.buttons["chat-past"].click, recall, page, {*page.asking(), *past},
            {page.past_status, *merged, *page.filled()}, **LIMIT, **_queued(page.past_status)),
    ]  # fmt: skip
    trying.append(_on(page.buttons["pin-past"].click, in_turn("past_status", recalling.pin), page,
                      {*page.asking(), *past}, {page.past_status, *page.answered()}, **ASKING,
                      **_queued(page.past_status)))  # fmt: skip
    for each in merging:
        _merged(page, each)
    _stopping(page, trying, merging, examined)
    return merging


def _queued(*where: Any) -> dict[str, Any]:
    """While an event waits for its turn, its place in the queue and gradio's guess of the wait.

    Chats among these are not edited meanwhile; the style hides it there.
    """
    return {"show_progress": "minimal", "show_progress_on": [*where]}


def _trying(page: Page) -> list[Any]:
    """Whatever puts a question to columns."""
    buttons, private = page.buttons, {"api_visibility": "private"}
    chats = [column.chat for column in page.columns.values()]
    waiting = {**ASKING, **_queued(page.status, *chats)}
    device = {**waiting, **private}
    put = partial(in_turn, "status")
    ask = _handling(put(asking.ask), page)
    answering = gr.on(
        [buttons["ask"].click, page.question.submit], ask, page.asking(), page.answered(), **device
    )
    example = page.examples.click(lambda row: row[0], page.examples, page.question, **private)
    trying = [
        answering,
        example.then(ask, page.asking(), page.answered(), **device),
    ]
    for name, again, shown in (
        ("retry", asking.retry, page.answered()),
        ("new-seed", asking.new_seed, {page.seed, *page.answered()}),
    ):
        click = buttons[name].click
        trying.append(_on(click, put(again), page, page.asking(), shown, **waiting))
    for slot, column in page.columns.items():
        retry = put(partial(asking.retry_one, slot=slot))
        ask_one = put(partial(asking.ask, slots=(slot,)))
        for name, handler in (("retry", retry), ("alone", ask_one)):
            click = column.buttons[name].click
            trying.append(_on(click, handler, page, page.asking(), page.answered(), **waiting))
        edit = _editing(page, slot)
        trying.append(column.chat.edit(edit, page.asking(), page.answered(), **device))
    for trigger in (buttons["ask"].click, page.question.submit):
        _on(trigger, comparing.wait, page, {page.visit, page.question}, {page.status}, queue=False)
    return trying


def _stopping(page: Page, trying: list[Any], merging: list[Any], examined: Any) -> None:
    """Whatever ends what is under way: all of it, the sheet, or one column."""
    buttons, drawn = page.buttons, {page.visit, page.follow}
    settled = (page, {page.visit}, {page.status})
    stops = [*trying, *merging, examined]
    progressed = {page.progress, page.sanity, page.past_status, *page.answered()}
    for name, what in (("stop", stops), ("halt", stops), ("stop-sheet", [examined])):
        stopping = _on(buttons[name].click, comparing.settle, *settled, cancels=what, queue=False)
        if name != "stop-sheet":
            _on(stopping.then, comparing.stop, page, {*drawn, page.sanity}, progressed,
                queue=False)  # fmt: skip
        _on(stopping.then, examining.stop, page, {page.sheet}, page.examined(), queue=False)
    clearing = _on(buttons["clear"].click, comparing.settle, *settled, cancels=trying, queue=False)
    _on(clearing.then, comparing.clear, page, drawn, page.answered(), queue=False)
    one: dict[str | int, Any] = {slot: c.buttons["stop"] for slot, c in page.columns.items()}
    one |= {number: booth.stop for number, booth in enumerate(page.unnamed)}
    for which, button in one.items():
        handler = partial(comparing.stop_one, column=which)
        _on(button.click, handler, page, {page.visit}, {page.status}, queue=False)


def _merged(page: Page, merging: Any) -> None:
    """Whatever follows a merge. The next one need not wait for the check of this one."""
    _on(merging.then, keeping.show_cache, page, {page.visit}, {page.foot})
    noted = _on(merging.then, recalling.note, page, {page.visit, page.past}, {page.past},
                queue=False)  # fmt: skip
    _on(merging.then, drawing.draw, page, {page.visit, page.drawn}, page.pictures(),
        queue=False)  # fmt: skip
    judging = _on(noted.then, checking.check, page, {page.visit, page.pins, page.sanity},
                  {page.judged, page.sanity}, **LIMIT)  # fmt: skip
    _on(judging.then, recalling.judge, page, {page.judged, page.past}, {page.past}, queue=False)
    _on(judging.then, checking.show, page, {page.visit, page.judged}, {page.sanity}, queue=False)


def _comparing(page: Page) -> None:
    """Whatever is done with answers that are there."""
    drawn, quick = {page.visit, page.follow}, {"queue": False}
    _on(page.follow.input, comparing.redraw, page, drawn, page.compared(), **quick)
    going = [_on(page.buttons["reveal"].click, comparing.reveal, page, drawn, page.compared(),
                 **quick)]  # fmt: skip
    choices = {page.buttons["tie"]: TIE, page.buttons["bad"]: BAD}
    choices |= {booth.best: number for number, booth in enumerate(page.unnamed)}
    for button, choice in choices.items():
        handler = partial(comparing.vote, choice=choice)
        going.append(_on(button.click, handler, page, drawn, page.answered(), **quick))
    for kind, name in (("md", "save-markdown"), ("json", "save-json")):
        saving = _on(page.buttons[name].click, partial(comparing.save, kind=kind), page,
                     {page.visit}, {page.saved, page.status}, **quick)  # fmt: skip
        saving.then(None, page.saved, js="(file) => window.playground.save(file)")
        saving = _on(page.buttons[name.replace("-", "-sheet-")].click,
                     partial(examining.save, kind=kind), page, {page.sheet},
                     {page.saved, page.sheet_status}, **quick)  # fmt: skip
        saving.then(None, page.saved, js="(file) => window.playground.save(file)")
    _on(page.preset.input, examining.offer, page, {page.preset, page.rows}, {page.rows}, **quick)
    paste = "(table) => window.playground.paste(table)"
    page.buttons["paste-rows"].click(None, page.rows, page.rows, js=paste)
    pin, unpin = page.columns["merged"].buttons["pin"], page.columns[PINNED].buttons["unpin"]
    _on(pin.click, comparing.pin, page, drawn, page.answered(), **quick)
    going.append(_on(unpin.click, comparing.unpin, page, drawn, page.answered(), **quick))
    for gone in going:  # with the button that was pressed
        gone.then(None, js="() => window.playground.refocus()")
    copying = _on(page.columns["merged"].buttons["copy"].click, comparing.copy, page, {page.visit},
                  {page.saved}, **quick)  # fmt: skip
    copying.then(None, page.saved, js="(copied) => window.playground.copy(copied.text)")
    named = [column.buttons["wide"] for column in page.columns.values()]
    for wide in (*named, *(booth.wide for booth in page.unnamed)):
        wide.click(None, js=f"() => window.playground.enlarge('{wide.elem_id}')")
    for name, step in (("smaller", -1), ("larger", 1)):
        page.buttons[name].click(None, js=f"() => window.playground.enlargeText({step})")
    page.folded.change(None, page.folded, js="(slots) => window.playground.fold(slots)")


def _stepping(page: Page, merging: list[Any]) -> None:
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
        stepped = _on(trigger, stepping.show, page, asked, shown, queue=False,
                      trigger_mode="always_last")  # fmt: skip
        stepped.then(None, js="() => window.playground.follow()")


def _deciding(page: Page) -> None:
    """Whatever looks into the merged model's answer."""
    shown = {page.looked_into, page.strip, page.token, page.bars, page.looked_status}
    quick = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    look_into, choose = (
        in_turn("looked_status", handler, waits=True)  # neither changes what was said
        for handler in (deciding.look_into, deciding.choose)
    )
    looking = [_on(page.buttons["look-into"].click, look_into, page, page.asking(), shown,
                   **LIMIT)]  # fmt: skip
    asked = {page.visit, page.sheet, page.pins, page.looked_into, page.token}

    def place(at: gr.SelectData) -> int:
        return int(at.index) + 1

    last = {**LIMIT, "trigger_mode": "always_last"}
    looking.append(_on(page.token.input, choose, page, asked, shown, **last))
    clicked = page.strip.select(place, None, page.token, **quick)
    looking.append(_on(clicked.then, choose, page, asked, shown, **LIMIT))
    stops = [page.buttons[name].click for name in ("stop", "stop-looking")]
    stopping = _on(partial(gr.on, stops), comparing.settle, page, {page.visit}, {page.status},
                   cancels=looking, queue=False)  # fmt: skip
    stopping.then(lambda: "", None, page.looked_status, **quick)  # what was seen before stays


def _sweeping(page: Page) -> None:
    """Whatever merges again and again as a number moves."""
    quick, buttons = {"queue": False}, page.buttons
    asked = {*page.sweeping(), page.visit, page.sheet, page.pins, *page.options()}
    run = in_turn("swept_status", sweeping.run)
    swept = _on(buttons["run-sweep"].click, run, page, asked, page.curve(), **ASKING,
                **_queued(page.swept_status))  # fmt: skip
    stops = [buttons[name].click for name in ("stop-sweep", "stop")]
    stopping = _on(partial(gr.on, stops), comparing.settle, page, {page.visit}, {page.status},
                   cancels=[swept], **quick)  # fmt: skip
    _on(stopping.then, sweeping.stop, page, {page.swept}, page.curve(), **quick)
    ranged = {page.knob, page.low, page.high}
    offered = {"trigger_mode": "always_last", **quick}
    _on(page.recipe.change, sweeping.offer, page, {page.recipe, page.knob}, ranged, **offered)
    _on(page.knob.input, sweeping.choose, page, {page.recipe, page.knob},
        {*ranged, page.swept_status}, **offered)  # fmt: skip
    used = {page.recipe, page.swept, page.point}
    _on(buttons["use-value"].click, sweeping.use, page, used,
        {*page.filled(), page.swept_status})  # fmt: skip
    for kind, name in (("md", "save-sweep-markdown"), ("json", "save-sweep-json")):
        saving = _on(buttons[name].click, partial(sweeping.save, kind=kind), page, {page.swept},
                     {page.saved, page.swept_status}, **quick)  # fmt: skip
        saving.then(None, page.saved, js="(file) => window.playground.save(file)")


def _drawing(page: Page) -> None:
    """Whatever opens and closes the pictures of the last merge."""
    outputs, quick = {page.drawn, *page.pictures()}, {"queue": False}
    _on(page.inside.expand, drawing.opened, page, {page.visit}, outputs, **quick)
    _on(page.inside.collapse, drawing.closed, page, {page.visit}, {page.drawn}, **quick)


def _prompting(page: Page) -> None:
    """Whatever shows what the models read."""
    asked = {page.visit, page.pins, page.system}
    blocks = {part for g in page.given.values() for part in (g.box, g.head, g.text)}
    _on(page.buttons["show-given"].click, prompting.show, page, asked,
        {page.given_status, *blocks})  # fmt: skip


def _recalling(blocks: gr.Blocks, page: Page) -> None:
    """Whatever is done with earlier merges beside asking them."""
    asked, quick = {page.past, page.listing}, {"queue": False}
    for trigger in (blocks.load, page.past.change, page.past_box.expand, page.tally.change):
        _on(trigger, recalling.draw, page, {page.visit, *asked}, {page.listing, page.past_box},
            **quick)  # fmt: skip
    _on(page.buttons["forget-past"].click, recalling.forget, page, asked,
        {page.past, page.past_status}, **quick)  # fmt: skip
    space = json.dumps(os.environ.get("SPACE_ID", ""))
    say = f"(past, id) => window.playground.linkPast(past, id, {space})"
    page.buttons["link-past"].click(None, [page.past, page.listing], js=say)


def _keeping(blocks: gr.Blocks, page: Page) -> None:
    """Whatever takes a merge away: it merges on this machine's processor, one at a time."""
    _on(blocks.load, keeping.show_cache, page, {page.visit}, {page.foot})
    buttons, alone = page.buttons, {"concurrency_id": "keeping", "concurrency_limit": 1}
    asked = {page.visit, page.push_name, page.push_public}
    offered = {page.offer, page.confirm, page.kept_status}
    making = _on(buttons["files"].click, keeping.make_files, page, {page.visit},
                 {page.kept_status}, **alone)  # fmt: skip
    _on(buttons["push"].click, keeping.offer_push, page, asked, offered)
    pushing = _on(buttons["confirm"].click, keeping.confirm_push, page, {page.offer}, offered,
                  **alone)  # fmt: skip
    _on(buttons["cancel"].click, keeping.cancel_push, page, {page.offer}, offered)
    buttons["stop-keeping"].click(None, cancels=[making, pushing])


def _showing(page: Page) -> None:
    """Whatever only changes what is seen."""
    page.tab.change(None, [page.tab], js="(slot) => window.playground.show(slot)")
    base = {page.show_base, page.form.pickers["base"]}
    for trigger in (page.show_base.change, page.form.pickers["base"].change):
        _on(trigger, choosing.fold_base, page, base, {page.columns["base"].box}, queue=False)


def _pricing(page: Page) -> None:
    """What clicks will cost, where each is paid for."""
    if gpu.granted():
        counted = (page.bill, page.tokens, page.rows)
        for part in counted:
            _on(part.change, pricing.show, page, {*counted}, {page.price}, queue=False,
                trigger_mode="always_last")  # fmt: skip


def _remembering(blocks: gr.Blocks, page: Page) -> None:
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
    _on(own.click, presenting.own, page, {page.recipe, page.kept}, {*page.unlocked(), page.kept})


async def _starting() -> AsyncIterator[str]:
    """What the app is still doing before it can work at full speed; no thread waits for it."""
    while what := readiness.doing():
        yield look.hint(f"Getting ready: {what} …")
        await asyncio.sleep(readiness.EVERY)
    yield ""


def _on(
    trigger: Any, handler: Handler, page: Page, inputs: set[Any], outputs: set[Any], **options: Any
) -> Any:
    options = {"show_progress": "hidden", "api_visibility": "private"} | options
    return trigger(_handling(handler, page), inputs, outputs, **options)


def _editing(page: Page, slot: str) -> Callable[..., Iterator[Updates]]:
    """What gradio calls when a question in a column has been edited."""

    def edited(
        values: Any,
        at: gr.EditData,
        login: gr.OAuthToken | None,
        profile: gr.OAuthProfile | None,
        request: gr.Request,
    ) -> Iterator[Updates]:
        change = partial(asking.edit, slot=slot, place=at.index, text=at.value)
        yield from _handling(in_turn("status", change), page)(values, login, profile, request)

    return edited


def _handling(handler: Handler, page: Page) -> Callable[..., Iterator[Updates]]:
    """A handler as gradio calls it: with the inputs' values, and the visitor's login if any."""

    def handle(
        values: Any, login: gr.OAuthToken | None, profile: gr.OAuthProfile | None,
        request: gr.Request,
    ) -> Iterator[Updates]:  # fmt: skip
        who = visitor(page.private(request), login, values.get(page.pins))
        account, session = profile.username if profile else "", request.session_hash or ""
        yield from handler(page, replace(who, session=session, account=account), values)

    return handle
