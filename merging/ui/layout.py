"""What the page holds, card by card."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from merging import gpu
from merging.conversation import MAX_CHARACTERS
from merging.ui import form as forms
from merging.ui import look, panels
from merging.ui.columns import SLOTS, booth, column
from merging.ui.page import Page
from merging.ui.panels import small
from merging.ui.pending import Pending
from merging.ui.presets import Preset, presets
from merging.ui.visit import Visit

AGAIN = {"retry": "↻ Retry", "new-seed": "↻ New seed", "clear": "Clear"}
"""Buttons on what was asked last."""
SAVING = {
    "smaller": "Smaller text", "larger": "Larger text", "save-markdown": "Save as Markdown",
    "save-json": "Save as JSON",
}  # fmt: skip
"""Buttons on all that is there."""


def layout(private: Callable[[gr.Request], bool]) -> Page:
    """The page, top to bottom, inside the Blocks at hand."""
    known = presets()
    buttons: dict[str, gr.Button] = {}
    with gr.Row(elem_classes=["head-row"]):
        gr.HTML(look.HEAD)
        if can_sign_in():
            gr.LoginButton(
                "Sign in", icon=None, size="sm", scale=0, min_width=120, elem_id="sign-in"
            )
    parts = {"starting": gr.HTML(elem_id="starting"), "fixed": panels.fixed(buttons)}
    with gr.Row(elem_classes=["cards"]):
        with gr.Column(elem_classes=["card"], min_width=320):
            chosen, pickers = _choose(known, buttons)
        with gr.Column(elem_classes=["card"], min_width=320):
            parts |= chosen | _merge(pickers, buttons)
    parts |= panels.stepping()
    with gr.Column(elem_classes=["card"], elem_id="chat"):
        parts |= _chat(known[0], buttons)
        parts |= _panels(known[0], buttons)
    with gr.Accordion("Inside the merge", open=False, elem_id="inside-box") as inside:
        parts |= panels.inside() | {"inside": inside}
    with gr.Accordion("Recipe", open=False, elem_id="recipe-box"):
        parts |= _recipe(known[0], buttons)
    with gr.Accordion("History", open=False, elem_id="history-box") as past_box:
        parts |= panels.past(buttons) | {"past_box": past_box}
    with gr.Accordion("Keep this merge", open=False, elem_id="keep-box"):
        parts |= _keep(buttons)
    parts["foot"] = gr.HTML(elem_id="foot")
    kept, past = (
        gr.BrowserState(empty, storage_key=f"merge-playground{what}", secret="merge-playground")
        for empty, what in (({}, ""), ([], "-history"))
    )
    return Page(
        private=private, pending=Pending(), presets=known, buttons=buttons, visit=gr.State(Visit()),
        pins=gr.State({}), sizes=gr.State(None), merges=gr.JSON([], visible="hidden"),
        talk=gr.JSON([0, 0], visible="hidden"), kept=kept, past=past, **parts,
    )  # fmt: skip


def _panels(first: Preset, buttons: dict[str, gr.Button]) -> dict[str, Any]:
    """What lies folded beneath the chat."""
    folded: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "deciding": ("Where the merge decides", partial(panels.deciding, buttons)),
        "reads": ("What each model reads", partial(panels.given, buttons)),
        "sheet-box": ("Question sheet", partial(panels.sheet, first, buttons)),
        "sweep-box": ("Sweep", partial(panels.sweep, buttons)),
        "settings": ("Settings", panels.settings),
    }
    parts: dict[str, Any] = {}
    for elem_id, (title, panel) in folded.items():
        with gr.Accordion(title, open=False, elem_id=elem_id):
            parts |= panel()
    return parts


def can_sign_in() -> bool:
    """On a Space whose owner has switched it on; elsewhere gradio's button would be a mock."""
    return all(os.environ.get(name) for name in ("SPACE_ID", "OAUTH_CLIENT_ID"))


def _choose(
    known: tuple[Preset, ...], buttons: dict[str, gr.Button]
) -> tuple[dict[str, Any], dict[str, gr.Dropdown]]:
    gr.HTML(look.step(1, "Choose"))
    preset = gr.Radio(
        [(p.title, p.key) for p in known], value=known[0].key, label="Preset",
        show_label=False, container=False, elem_id="preset",
    )  # fmt: skip
    why = gr.HTML(elem_id="why")
    pickers = forms.pickers()
    parts = {"preset": preset, "why": why, "silence": gr.HTML(elem_id="silence")}
    parts |= {"found": gr.JSON(visible=False), "taken": gr.State("")}
    parts["looked"] = gr.State({})
    parts["relatives"] = gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[], visible=False, elem_id="relatives"
    )
    with gr.Row(elem_classes=["tools"]):
        buttons["swap"] = small("swap", "⇄ Swap A and B")
        buttons["check"] = small("check", "Check")
    return parts | {"notes": gr.HTML(elem_id="notes")}, pickers


def _merge(pickers: dict[str, gr.Dropdown], buttons: dict[str, gr.Button]) -> dict[str, Any]:
    gr.HTML(look.step(2, "Merge"))
    form = forms.method_controls(pickers)
    again = gr.Checkbox(
        True, label="Let the merged model answer again after each merge", elem_id="again",
        container=False,
    )  # fmt: skip
    with gr.Row(elem_classes=["go"]):
        buttons["merge"] = gr.Button("Merge", variant="primary", elem_id="merge", min_width=110)
        buttons["halt"] = gr.Button("Stop", elem_id="stop-merge", min_width=80, scale=0)
    panels.held()
    parts = {"form": form, "again": again, "progress": gr.HTML(elem_id="progress")}
    return parts | {"sanity": gr.HTML(elem_id="sanity"), "judged": gr.State(look.UNJUDGED)}


def _chat(first: Preset, buttons: dict[str, gr.Button]) -> dict[str, Any]:
    gr.HTML(look.step(3, "Chat", "one question to all, with the same temperature and seed"))
    tabs = [(f"{look.MARKS[s]} {s.capitalize()}", s) for s in SLOTS]
    tab = gr.Radio(tabs, value="merged", show_label=False, label="Column", elem_id="tabs")
    with gr.Row(elem_id="columns", equal_height=True) as row:
        columns = {slot: column(slot) for slot in SLOTS}
        with columns["merged"].box:
            legend = gr.HTML(elem_id="legend")
    with gr.Row(elem_id="booths", equal_height=True, visible=False) as booths:
        unnamed = tuple(booth(number + 1) for number in range(len(SLOTS)))
    with gr.Row(elem_id="verdict", elem_classes=["tools"], visible=False) as verdict:
        gr.HTML(look.hint("Vote for the best answer, or:"))
        buttons["tie"] = small("tie", "Tie")
        buttons["bad"] = small("bad", "All bad")
        buttons["reveal"] = small("reveal", "Show names without a vote")
    tally = gr.HTML(elem_id="tally")
    with gr.Row(elem_classes=["ask"]):
        question = gr.Textbox(
            placeholder="Ask all of them …  Enter asks · Shift+Enter breaks the line · Esc stops",
            label="Question", show_label=False, lines=1, max_lines=6, scale=8,
            elem_id="question", container=False, max_length=MAX_CHARACTERS,
        )  # fmt: skip
        buttons["ask"] = gr.Button("Ask", variant="primary", elem_id="ask", min_width=80, scale=0)
        buttons["stop"] = gr.Button("Stop", elem_id="stop", min_width=70, scale=0)
    panels.held()
    status = gr.HTML(elem_id="status")
    price = gr.HTML(look.UNPRICED, elem_id="price", visible=gpu.granted())
    examples = gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[[q] for q in first.questions],
        label="Try", elem_id="examples",
    )  # fmt: skip
    with gr.Row(elem_classes=["tools"]):
        for name, label in AGAIN.items():
            buttons[name] = small(name, label)
        for name, label in SAVING.items():
            buttons[name] = small(name, label)
    with gr.Row(elem_classes=["tools"]):
        show_base = gr.Checkbox(
            False, label="○ base", elem_id="show-base", min_width=0, container=False
        )
        folded = gr.CheckboxGroup(
            [(f"{look.MARKS[s]} {look.slot_name(s)}", s) for s in SLOTS[1:]], value=list(SLOTS[1:]),
            label="Columns", show_label=False, container=False, elem_id="folded", min_width=0,
        )  # fmt: skip
        switches = _switches()
    return switches | {
        "tab": tab, "row": row, "columns": columns, "legend": legend, "booths": booths,
        "unnamed": unnamed, "verdict": verdict, "tally": tally, "question": question,
        "status": status, "price": price, "examples": examples, "show_base": show_base,
        "folded": folded, "saved": gr.JSON(visible=False),
    }  # fmt: skip


def _switches() -> dict[str, Any]:
    return {
        "follow": gr.Checkbox(
            True, label="Mark whom the merged answer follows", elem_id="follow", min_width=0,
            container=False,
        ),
        "blind": gr.Checkbox(
            False, label="Blind: no names until you vote", elem_id="blind", min_width=0,
            container=False,
        ),
    }  # fmt: skip


def _recipe(first: Preset, buttons: dict[str, gr.Button]) -> dict[str, Any]:
    gr.HTML(look.hint("mergekit's YAML: copy it, or paste one and press Use."))
    recipe = gr.Code(
        first.text, language="yaml", label="Recipe", elem_id="recipe", lines=12, max_lines=30
    )
    with gr.Row(elem_classes=["tools"]):
        buttons["use"] = small("use", "Use this recipe")
        buttons["link"] = small("link", "Copy link")
        buttons["class-link"] = small("class-link", "Copy link for a class")
        buttons["download"] = small("download", "Download")
    return {"recipe": recipe, "recipe_status": gr.HTML(elem_id="recipe-status")}


def _keep(buttons: dict[str, gr.Button]) -> dict[str, Any]:
    gr.HTML(look.hint("Download the merged model, or push it to your Hugging Face account."))
    with gr.Row(elem_classes=["keep"]):
        name = gr.Textbox(
            placeholder="my-merge", label="Repo", show_label=False, container=False,
            max_length=100, elem_id="push-name", min_width=160, scale=4,
        )  # fmt: skip
        public = gr.Checkbox(
            False, label="Public", container=False, min_width=80, scale=0, elem_id="push-public"
        )
        buttons["push"] = gr.Button("Push …", size="sm", min_width=90, scale=0, elem_id="push")
        buttons["files"] = gr.Button(
            "Make files to download", size="sm", min_width=180, scale=0, elem_id="files"
        )
        buttons["stop-keeping"] = gr.Button(
            "Stop", size="sm", min_width=70, scale=0, elem_id="stop-keeping"
        )
    status = gr.HTML(elem_id="kept-status")
    with gr.Row(visible=False, elem_classes=["keep"]) as confirm:
        buttons["confirm"] = gr.Button(
            "Yes, push", variant="primary", size="sm", min_width=110, scale=0, elem_id="confirm"
        )
        buttons["cancel"] = gr.Button("No", size="sm", min_width=70, scale=0, elem_id="cancel")
    return {
        "push_name": name, "push_public": public, "confirm": confirm, "kept_status": status,
        "offer": gr.State(None),
    }  # fmt: skip
