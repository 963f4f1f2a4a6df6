"""The chat's columns: one for the base, each parent and the merged model, made in a loop."""

from dataclasses import dataclass

import gradio as gr

from merging.ui import look

SLOTS = ("base", "a", "b", "c", "merged")


@dataclass(frozen=True)
class Column:
    """One model's part of the chat."""

    slot: str
    box: gr.Column
    head: gr.HTML
    chat: gr.Chatbot


def column(slot: str) -> Column:
    name = {"base": "the base", "merged": "the merged model"}.get(slot, f"model {slot.upper()}")
    with gr.Column(
        elem_id=f"column-{slot}", elem_classes=["answers", slot], min_width=200,
        visible=slot not in ("base", "c"),
    ) as box:  # fmt: skip
        head = gr.HTML(look.column_head(slot, "…"), elem_classes=["column-head"])
        chat = gr.Chatbot(
            label=f"Answers of {name}", show_label=False, height=380, buttons=["copy"],
            elem_id=f"chat-{slot}", placeholder=_placeholder(slot), layout="bubble",
        )  # fmt: skip
    return Column(slot, box, head, chat)


def _placeholder(slot: str) -> str:
    return "Press **Merge**, then ask." if slot == "merged" else "Ask something below."
