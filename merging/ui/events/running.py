"""Events that merge and ask, what stops them, and what follows a merge."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from merging.ui import asking, checking, comparing, drawing, examining, keeping, recalling
from merging.ui.errors import Updates
from merging.ui.events.binding import handling, heard, on, queued, requesting
from merging.ui.page import Page
from merging.ui.turn import ASKING, MERGING, in_turn


def running(page: Page) -> list[Any]:
    """Whatever reaches the device, and what stops it; returns the events that merge."""
    trying = _trying(page)
    run = in_turn("sheet_status", examining.run)
    examined = requesting(page.buttons["run-sheet"], run, page, page.asking(), page.examined(),
                          **ASKING, **queued(page.sheet_status))  # fmt: skip
    known = {page.judged, page.pins, page.sizes}
    merged = {page.progress, page.sanity, *known, *page.answered()}
    past = {page.past, page.listing}
    merge = in_turn("progress", asking.merge, holds={"merging": True})
    recall = in_turn("past_status", recalling.chat, holds={"merging": True})
    pin = in_turn("past_status", recalling.pin, holds={"asking": True})
    merging = [
        on(page.buttons["merge"].click, merge, page, page.asking(), merged, **MERGING,
            **queued(page.progress)),
        on(page.buttons["chat-past"].click, recall, page, {*page.asking(), *past},
            {page.past_status, *merged, *page.filled()}, **MERGING, **queued(page.past_status)),
    ]  # fmt: skip
    trying.append(requesting(page.buttons["pin-past"], pin, page,
                             {*page.asking(), *past}, {page.past_status, *page.answered()},
                             **ASKING, **queued(page.past_status)))  # fmt: skip
    for name, each in zip(("merge", "chat-past"), merging, strict=True):
        heard(page.buttons[name], each, _merged(page, each))
    _stopping(page, trying, merging, examined)
    return merging


def _trying(page: Page) -> list[Any]:
    """Whatever puts a question to columns."""
    buttons, private = page.buttons, {"api_visibility": "private"}
    chats = [column.chat for column in page.columns.values()]
    waiting = {**ASKING, **queued(page.status, *chats)}
    put = partial(in_turn, "status", holds={"asking": True})
    ask = put(asking.ask)
    trying = []
    for name, handler, shown in (
        ("ask", ask, page.answered()),
        ("retry", put(asking.retry), page.answered()),
        ("new-seed", put(asking.new_seed), {page.seed, *page.answered()}),
    ):
        trying.append(requesting(buttons[name], handler, page, page.asking(), shown, **waiting))
    example = page.examples.click(lambda row: row[0], page.examples, page.question, **private)
    trying.append(on(example.then, ask, page, page.asking(), page.answered(), **waiting))
    heard(page.examples, example, trying[-1])
    for slot, column in page.columns.items():
        retry = put(partial(asking.retry_one, slot=slot))
        ask_one = put(partial(asking.ask, slots=(slot,)))
        for name, handler in (("retry", retry), ("alone", ask_one)):
            button, shown = column.buttons[name], page.answered()
            trying.append(requesting(button, handler, page, page.asking(), shown, **waiting))
        edit, chat = _editing(page, slot), column.chat
        chat.edit(None, js=f"() => window.playground.going.add('{chat.elem_id}')")
        trying.append(chat.edit(edit, page.asking(), page.answered(), **waiting, **private))
        heard(chat, trying[-1], kind="edits")
    return trying


def _stopping(page: Page, trying: list[Any], merging: list[Any], examined: Any) -> None:
    """Whatever ends what is under way: all of it, the sheet, or one column."""
    buttons, drawn = page.buttons, {page.visit, page.follow}
    settled = (page, {page.visit}, {page.status})
    stops = [*trying, *merging, examined]
    progressed = {page.progress, page.sanity, page.past_status, *page.answered()}
    for name, what in (("stop", stops), ("halt", stops), ("stop-sheet", [examined])):
        stopping = on(buttons[name].click, comparing.settle, *settled, cancels=what, queue=False)
        last = stopping
        if name != "stop-sheet":
            last = on(last.then, comparing.stop, page, {*drawn, page.sanity}, progressed,
                       queue=False)  # fmt: skip
        last = on(last.then, examining.stop, page, {page.sheet}, page.examined(), queue=False)
        heard(buttons[name], stopping, last, "ends")
    clearing = on(buttons["clear"].click, comparing.settle_cleared, *settled, cancels=trying,
                   queue=False)  # fmt: skip
    named = {*drawn, *page.form.pickers.values()}
    last = on(clearing.then, comparing.clear, page, named, page.answered(), queue=False)
    heard(buttons["clear"], clearing, last, "ends")
    one: dict[str | int, Any] = {slot: c.buttons["stop"] for slot, c in page.columns.items()}
    one |= {number: booth.stop for number, booth in enumerate(page.unnamed)}
    for which, button in one.items():
        handler = partial(comparing.stop_one, column=which)
        on(button.click, handler, page, {page.visit}, {page.status}, queue=False)


def _merged(page: Page, merging: Any) -> Any:
    """Whatever follows a merge; returns what comes before the next one, which need not wait for the
    check of this one.
    """
    on(merging.then, keeping.show_cache, page, {page.visit}, {page.foot})
    noted = on(merging.then, recalling.note, page, {page.visit, page.past}, {page.past},
                queue=False)  # fmt: skip
    on(merging.then, drawing.draw, page, {page.visit, page.drawn}, page.pictures(),
        queue=False)  # fmt: skip
    judging = on(noted.then, checking.check, page, {page.visit, page.pins, page.sanity},
                  {page.judged, page.sanity}, **MERGING)  # fmt: skip
    on(judging.then, recalling.judge, page, {page.judged, page.past}, {page.past}, queue=False)
    on(judging.then, checking.show, page, {page.visit, page.judged}, {page.sanity}, queue=False)
    return noted


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
        begun = handling(in_turn("status", change, holds={"asking": True}), page)
        yield from begun(values, login, profile, request)

    return edited
