"""What is folded beneath merge and chat, or seen now and then: each panel's components, by their
names in `page.Page`.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from merging.chat import MAX_NEW_TOKENS
from merging.ui import columns, look
from merging.ui import sheet as sheets
from merging.ui.jobs import LENGTH
from merging.ui.pictures import Picture
from merging.ui.presets import Preset

FRAMES = 6
"""Pictures at most."""


@dataclass(frozen=True)
class Frame:
    """Where a picture hangs."""

    box: gr.Column
    head: gr.HTML
    plot: gr.Plot

    def parts(self) -> set[Any]:
        return {self.box, self.head, self.plot}

    def hung(self, picture: Picture | None) -> dict[Any, Any]:
        """Updates with a picture in it, or none."""
        if picture is None:
            return {self.box: gr.update(visible=False)}
        shown = gr.update(visible=True)
        return {self.box: shown, self.head: look.caption(picture), self.plot: picture.figure}


def _frame(name: str) -> Frame:
    with gr.Column(min_width=300, visible=False, elem_classes=["frame"]) as box:
        head = gr.HTML(elem_classes=["caption"])
        plot = gr.Plot(show_label=False, container=False, elem_id=name)
    return Frame(box, head, plot)


def small(name: str, label: str) -> gr.Button:
    """A button among others."""
    return gr.Button(label, size="sm", min_width=0, elem_id=name)


def held() -> None:
    """Beneath buttons that make requests: where they are said to wait."""
    gr.HTML(look.HELD, elem_classes=["held"])


def stepping() -> dict[str, Any]:
    """One tensor of the merge, step by step."""
    with gr.Accordion("Step by step", open=False, elem_id="stepping") as box:
        with gr.Row(elem_classes=["stepping"]):
            tensor = gr.Dropdown(
                [], label="Tensor", info="one of the merged model's", min_width=240, scale=3,
                elem_id="tensor", elem_classes=["picker"], allow_custom_value=True,
            )  # fmt: skip
            row, column = (
                gr.Slider(
                    1, 2, 1, step=1, label=what.capitalize(), min_width=140, elem_id=f"first-{what}"
                )
                for what in ("row", "column")
            )
        status, steps = gr.HTML(elem_id="steps-status"), gr.HTML(elem_id="steps")
    return {
        "steps_box": box, "steps_of": gr.JSON(visible="hidden", elem_id="steps-of"),
        "tensor": tensor, "first_row": row, "first_column": column, "steps_status": status,
        "steps": steps, "steps_shown": gr.State(((), "", ())),
    }  # fmt: skip


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
    held()
    strip = gr.HighlightedText(
        label="The merged answer, token by token", show_legend=True, show_inline_category=False,
        combine_adjacent=False, color_map=look.NEAR, visible=False, elem_id="strip",
    )  # fmt: skip
    with gr.Row(elem_classes=["frames"]):
        along = _frame("along")
    token = gr.Slider(1, 2, 1, step=1, label="Token", visible=False, elem_id="token")
    return {
        "strip": strip, "along": along, "token": token, "bars": gr.HTML(elem_id="bars"),
        "looked_status": gr.HTML(elem_id="looked-status"), "looked_into": gr.State(None),
    }  # fmt: skip


def inside() -> dict[str, Any]:
    """Inside the merge."""
    status = gr.HTML(look.hint("What the last merge did to the weights, in pictures."),
                     elem_id="inside-status")  # fmt: skip
    with gr.Row(elem_classes=["frames"]):
        frames = tuple(_frame(f"picture-{number}") for number in range(FRAMES))
    return {"inside_status": status, "frames": frames, "drawn": gr.State(False)}


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
    buttons |= _run_and_save("sheet")
    buttons["paste-rows"] = gr.Button(visible="hidden", elem_id="paste-rows")
    return {
        "rows": rows, "sheet_status": gr.HTML(elem_id="sheet-status"),
        "answered_rows": gr.HTML(elem_id="sheet-answers"), "sheet": gr.State(sheets.Sheet()),
    }  # fmt: skip


def _run_and_save(what: str) -> dict[str, gr.Button]:
    """The buttons of what takes a while and leaves a table."""
    with gr.Row(elem_classes=["tools"]):
        run = gr.Button(
            f"Run the {what}", variant="primary", size="sm", min_width=0, elem_id=f"run-{what}"
        )
        others = {
            f"stop-{what}": "Stop",
            f"save-{what}-markdown": "Save as Markdown",
            f"save-{what}-json": "Save as JSON",
        }
        buttons = {name: small(name, label) for name, label in others.items()}
    held()
    return {f"run-{what}": run} | buttons


def past(buttons: dict[str, gr.Button]) -> dict[str, Any]:
    """Earlier merges, of this visit and of others in this browser."""
    gr.HTML(look.hint(
        "The merges made in this browser, the last one first, each with what differs from the one "
        "before. One that is no longer in memory is made again."
    ))  # fmt: skip
    listing = gr.Radio(
        [], label="Merges", show_label=False, container=False, visible=False, elem_id="listing"
    )
    with gr.Row(elem_classes=["tools"]):
        buttons["pin-past"] = small("pin-past", "Pin beside the merged model")
        buttons["chat-past"] = small("chat-past", "Chat with it")
        buttons["link-past"] = small("link-past", "Copy link")
        buttons["forget-past"] = small("forget-past", "Forget it")
    held()
    return {"listing": listing, "past_status": gr.HTML(elem_id="past-status")}


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


def sweep(buttons: dict[str, gr.Button]) -> dict[str, Any]:
    """The sweep."""
    gr.HTML(look.hint(
        "The merge is made again as one number moves, and scored beside its parents: on the "
        "question sheet's expected answers, or by how well it foretells what each parent itself "
        "says to those questions (perplexity: 1 is certain, the lower the better)."
    ))  # fmt: skip
    with gr.Row(elem_classes=["sweep"]):
        parts: dict[str, Any] = {
            "knob": gr.Dropdown([], label="Number", min_width=140, elem_id="sweep-knob"),
            "low": gr.Number(0, label="From", min_width=80, elem_id="sweep-from"),
            "high": gr.Number(1, label="To", min_width=80, elem_id="sweep-to"),
            "count": gr.Number(
                13, label="Values", precision=0, min_width=80, elem_id="sweep-steps"
            ),
        }
    parts["scored_on"] = gr.Radio(
        [("Expected answers of the question sheet", "sheet"), ("What the parents say", "texts")],
        value="sheet", label="Score on", elem_id="sweep-on",
    )  # fmt: skip
    buttons |= _run_and_save("sweep")
    parts["swept_status"] = gr.HTML(elem_id="sweep-status")
    parts["plot"] = gr.Plot(visible=False, show_label=False, label="Sweep", elem_id="sweep-plot")
    with gr.Row(elem_classes=["chosen"]):
        parts["point"] = gr.Dropdown(
            [], label="Value", visible=False, min_width=200, scale=0, elem_id="sweep-point"
        )
        buttons["use-value"] = gr.Button(
            "Use this value", size="sm", min_width=0, visible=False, elem_id="use-value"
        )
    return parts | {"numbers": gr.HTML(elem_id="sweep-numbers"), "swept": gr.State(None)}
