"""How an event reaches a handler of the page, and who is asking there; it knows no handler."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from merging.ui.errors import Handler, Updates
from merging.ui.page import Page
from merging.ui.visitor import visitor


def on(
    trigger: Any, handler: Handler, page: Page, inputs: set[Any], outputs: set[Any], **options: Any
) -> Any:
    """Have a trigger call a handler: no named endpoint, and no progress of gradio's unless told."""
    options = {"show_progress": "hidden", "api_visibility": "private"} | options
    return trigger(handling(handler, page), inputs, outputs, **options)


def requesting(
    button: Any, handler: Handler, page: Page, inputs: set[Any], outputs: set[Any], **options: Any
) -> Any:
    """Have a button make a request of the page; while another is under way it waits."""
    event = on(button.click, handler, page, inputs, outputs, **options)
    heard(button, event)
    return event


def heard(pressed: Any, first: Any, last: Any = None, kind: str = "asks") -> None:
    """Have the browser hear when what a press begins has ended: with the last of its events, or as
    one fails. It `asks`, of which one is under way at a time while the next waits in the browser,
    or `ends` that.
    """
    pressed.elem_classes = [*(pressed.elem_classes or ()), kind]
    ended = f"() => window.playground.ended({json.dumps(pressed.elem_id)})"
    last = last or first
    for end in dict.fromkeys([first.failure, last.failure, last.then]):
        end(None, js=ended)


def queued(*where: Any) -> dict[str, Any]:
    """While an event waits for its turn, its place in the queue and gradio's guess of the wait.

    Chats among these are not edited meanwhile; the style hides it there.
    """
    return {"show_progress": "minimal", "show_progress_on": [*where]}


def linking(
    trigger: Any, page: Page, status: Any, source: Any = None, *, fixed: bool = False
) -> None:
    """Have the browser copy a link to the recipe in `source`, or to the one that was just saved, if
    any; `status` says what became of it.
    """
    space = json.dumps(os.environ.get("SPACE_ID", ""))
    link = f"window.playground.link(found.text || found, {space}, {json.dumps(fixed)})"
    trigger(
        None, [source or page.saved, status], status, js=f"(found, said) => found ? {link} : said"
    )


def handling(handler: Handler, page: Page) -> Callable[..., Iterator[Updates]]:
    """A handler as gradio calls it: with the inputs' values, and the visitor's login if any."""

    def handle(
        values: Any, login: gr.OAuthToken | None, profile: gr.OAuthProfile | None,
        request: gr.Request,
    ) -> Iterator[Updates]:  # fmt: skip
        private, pins = page.private(request), values.get(page.pins)
        who = visitor(private, login, pins, profile, request.session_hash)
        yield from handler(page, who, values)

    return handle
