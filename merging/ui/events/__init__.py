"""Which handler each event of the page calls. No logic here."""

import gradio as gr

from merging.ui.events import forming, panels, running
from merging.ui.page import Page


def bind(blocks: gr.Blocks, page: Page) -> None:
    """Bind all events, inside the Blocks at hand."""
    forming.forming(page)
    forming.searching(page)
    merging = running.running(page)
    panels.steps(page, merging)
    panels.answers(page)
    panels.tokens(page)
    panels.prompts(page)
    panels.sweep(page)
    panels.history(blocks, page)
    panels.pictures(page)
    panels.files(blocks, page)
    panels.view(page)
    panels.prices(page)
    forming.remembering(blocks, page)
