"""The chat's columns: one for the base, each parent and the merged model, made in a loop; and those
without names, for blind rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr

from merging.ui import look
from merging.ui.visit import PINNED

SLOTS = ("base", "a", "b", "c", "merged", PINNED)


@dataclass(frozen=True)
class Column:
    """One model's part of the chat."""

    slot: str
    box: gr.Column
    head: gr.HTML
    chat: gr.Chatbot
    buttons: Mapping[str, gr.Button]


@dataclass(frozen=True)
class Given:
    """What one model was given to read; its text is a stranger's, and stays text."""

    slot: str
    box: gr.Column
    head: gr.HTML
    text: gr.Textbox


@dataclass(frozen=True)
class Booth:
    """A part of the chat that does not say whose it is."""

    box: gr.Column
    head: gr.HTML
    chat: gr.Chatbot
    best: gr.Button
    stop: gr.Button
    wide: gr.Button


def column(slot: str) -> Column:
    names = {"base": "the base", "merged": "the merged model", PINNED: "the pinned merge"}
    name = names.get(slot, f"model {slot.upper()}")
    short = look.slot_name(slot)
    with gr.Column(
        elem_id=f"column-{slot}", elem_classes=["answers", slot], min_width=200,
        visible=slot not in ("base", "c", PINNED),
    ) as box:  # fmt: skip
        head = gr.HTML(look.column_head(slot, "…"), elem_classes=["column-head"])
        buttons = {"wide": _wide(f"wide-{slot}", short)}
        chat = gr.Chatbot(
            label=f"Answers of {name}", show_label=False, height=380, buttons=["copy"],
            elem_id=f"chat-{slot}", placeholder=_placeholder(slot), layout="bubble",
            editable="user", group_consecutive_messages=False,
        )  # fmt: skip
        with gr.Row(elem_classes=["column-tools"]):
            buttons["stop"] = _tool(f"halt-{slot}", f"Stop {short}")
            buttons["retry"] = _tool(f"retry-{slot}", f"↻ Retry {short}")
            buttons["alone"] = _tool(f"alone-{slot}", f"Ask {short} alone")
            if slot == "merged":  # gradio copies texts, and a marked answer is none
                buttons["copy"] = _tool(f"copy-{slot}", "Copy")
                buttons["pin"] = _tool("pin", "Pin this merge")
            if slot == PINNED:
                buttons["unpin"] = _tool("unpin", "Unpin")
    return Column(slot, box, head, chat, buttons)


def given(slot: str) -> Given:
    with gr.Column(
        elem_id=f"given-{slot}", elem_classes=["answers", slot], min_width=200, visible=False
    ) as box:
        head = gr.HTML()
        text = gr.Textbox(
            label=f"What {look.slot_name(slot)} was given", show_label=False, container=False,
            lines=3, max_lines=16, interactive=False, buttons=["copy"], elem_classes=["given"],
        )  # fmt: skip
    return Given(slot, box, head, text)


def booth(number: int) -> Booth:
    with gr.Column(
        elem_id=f"unnamed-{number}", elem_classes=["answers", "unnamed"], min_width=200
    ) as box:
        head = gr.HTML(look.unnamed_head(number, ""), elem_classes=["column-head"])
        wide = _wide(f"wide-{number}", str(number))
        chat = gr.Chatbot(
            label=f"Answer {number}", show_label=False, height=380, buttons=["copy"],
            elem_id=f"answer-{number}", layout="bubble",
        )  # fmt: skip
        best = gr.Button(f"{number} is best", size="sm", elem_id=f"best-{number}")
        with gr.Row(elem_classes=["column-tools"]):
            stop = _tool(f"halt-{number}", f"Stop {number}")
    return Booth(box, head, chat, best, stop, wide)


def _tool(id: str, text: str) -> gr.Button:
    return gr.Button(text, size="sm", min_width=0, scale=0, elem_id=id)


def _wide(id: str, name: str) -> gr.Button:
    """Its sign is drawn by the style; its text is for those who cannot see it."""
    return gr.Button(f"Enlarge {name}", size="sm", elem_id=id, elem_classes=["wide"], min_width=0)


def _placeholder(slot: str) -> str:
    return "Press **Merge**, then ask." if slot == "merged" else "Ask something below."
