"""What is folded beneath the chat or seen now and then: each panel's components, by their names in
`layout.Page`."""

from typing import Any

import gradio as gr

from merging.chat import MAX_NEW_TOKENS
from merging.ui import columns, look
from merging.ui import sheet as sheets
from merging.ui.jobs import LENGTH
from merging.ui.presets import Preset


def small(name: str, label: str) -> gr.Button:
    """A button among others."""
    return gr.Button(label, size="sm", min_width=0, elem_id=name)


def fixed(buttons: dict[str, gr.Button]) -> gr.Row:
    """What is said while a presenter has fixed the recipe, above all else."""
    with gr.Row(visible=False, elem_id="fixed", elem_classes=["tools"]) as row:
        gr.HTML(look.hint("This recipe is fixed for all: press Merge, and ask below."))
        buttons["own"] = small("own", "Make my own copy")
    return row


def deciding(buttons: dict[str, gr.Button]) -> dict[str, Any]:
    """Where the merge decides."""
    gr.HTML(look.hint(
        "Every model reads the merged model's last answer. Each token is marked with the parent "
        "whose next-token probabilities are nearest there; choose one to see what each would say."
    ))  # fmt: skip
    with gr.Row(elem_classes=["tools"]):
        buttons["look-into"] = small("look-into", "Look into the merged answer")
        buttons["stop-looking"] = small("stop-looking", "Stop")
    strip = gr.HighlightedText(
        label="The merged answer, token by token", show_legend=True, show_inline_category=False,
        combine_adjacent=False, color_map=look.NEAR, visible=False, elem_id="strip",
    )  # fmt: skip
    token = gr.Slider(1, 2, 1, step=1, label="Token", visible=False, elem_id="token")
    return {
        "strip": strip, "token": token, "bars": gr.HTML(elem_id="bars"),
        "looked_status": gr.HTML(elem_id="looked-status"), "looked_into": gr.State(None),
    }  # fmt: skip


def given(buttons: dict[str, gr.Button]) -> dict[str, Any]:
    """What each model reads."""
    gr.HTML(look.hint(
        "A chat template turns the conversation into the text that a model was trained on. Here it "
        "is, with its special tokens, as each model was given it with its last question."
    ))  # fmt: skip
    with gr.Row(elem_classes=["tools"]):
        buttons["show-given"] = small("show-given", "Show what each was given")
    status = gr.HTML(elem_id="given-status")
    with gr.Row(elem_id="given"):
        blocks = {slot: columns.given(slot) for slot in columns.SLOTS}
    return {"given": blocks, "given_status": status}


def sheet(first: Preset, buttons: dict[str, gr.Button]) -> dict[str, Any]:
    """The question sheet."""
    gr.HTML(look.hint(
        "Each question is asked by itself, of all columns. Where an answer is expected, one that "
        "has it as whole words is right; | stands between answers that are right as well. Rows "
        "copied from a spreadsheet can be pasted."
    ))  # fmt: skip
    rows = gr.Dataframe(
        sheets.rows(first.sheet), headers=["Question", "Expected answer"], type="array",
        datatype="str", column_count=2,
        column_widths=["70%", "30%"], wrap=True, interactive=True, buttons=[], max_height=900,
        show_label=False, label="Question sheet", elem_id="sheet-rows",
    )  # fmt: skip
    with gr.Row(elem_classes=["tools"]):
        buttons["run-sheet"] = gr.Button(
            "Run the sheet", variant="primary", size="sm", min_width=0, elem_id="run-sheet"
        )
        buttons["stop-sheet"] = small("stop-sheet", "Stop")
        buttons["save-sheet-markdown"] = small("save-sheet-markdown", "Save as Markdown")
        buttons["save-sheet-json"] = small("save-sheet-json", "Save as JSON")
    buttons["paste-rows"] = gr.Button(visible="hidden", elem_id="paste-rows")
    return {
        "rows": rows, "sheet_status": gr.HTML(elem_id="sheet-status"),
        "answered_rows": gr.HTML(elem_id="sheet-answers"), "sheet": gr.State(sheets.Sheet()),
    }  # fmt: skip


def settings() -> dict[str, Any]:
    """How the models are asked."""
    parts: dict[str, Any] = {
        "system": gr.Textbox(label="System prompt", lines=2, max_length=4000, elem_id="system")
    }
    with gr.Row():
        parts["temperature"] = gr.Slider(
            0, 2, 0, step=0.05, label="Temperature", info="0: always the likeliest token",
            min_width=140, elem_id="temperature",
        )  # fmt: skip
        parts["seed"] = gr.Number(
            0, label="Seed", precision=0, minimum=0, min_width=100, elem_id="seed"
        )
        parts["tokens"] = gr.Slider(
            8, MAX_NEW_TOKENS, LENGTH, step=8, label="Length", info="tokens at most",
            min_width=140, elem_id="tokens",
        )  # fmt: skip
    return parts
