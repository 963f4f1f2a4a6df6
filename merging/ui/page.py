"""The components that the page's events read and write, by name; `layout` places them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from merging.ui.columns import Booth, Column, Given
from merging.ui.form import Form
from merging.ui.panels import Frame
from merging.ui.pending import Pending
from merging.ui.presets import Preset
from merging.ui.visit import PINNED


@dataclass(frozen=True)
class Page:
    """Every component that an event reads or writes.

    `private`: whether only this machine's own user can open the page; `pending`: who has asked for
    something; `pins` are the commits at which models were checked. What clicks cost is counted by
    `sizes`, bytes of the recipe's models by pinned name, None until it is checked; `merges`,
    identities of those in columns, with the sizes of their models; and `talk`, how many questions
    the next merge answers again, and characters of the longest conversation. The last two are no
    states, since gradio does not tell the browser when an event that is not queued has changed one.
    """

    private: Callable[[gr.Request], bool]
    pending: Pending
    presets: tuple[Preset, ...]
    preset: gr.Radio
    why: gr.HTML
    form: Form
    relatives: gr.Dataset
    taken: gr.State
    looked: gr.State
    found: gr.JSON
    silence: gr.HTML
    notes: gr.HTML
    again: gr.Checkbox
    progress: gr.HTML
    sanity: gr.HTML
    judged: gr.State
    steps_box: gr.Accordion
    steps_of: gr.JSON
    tensor: gr.Dropdown
    first_row: gr.Slider
    first_column: gr.Slider
    steps: gr.HTML
    steps_status: gr.HTML
    steps_shown: gr.State
    row: gr.Row
    columns: Mapping[str, Column]
    legend: gr.HTML
    booths: gr.Row
    unnamed: tuple[Booth, ...]
    verdict: gr.Row
    tally: gr.HTML
    tab: gr.Radio
    folded: gr.CheckboxGroup
    question: gr.Textbox
    status: gr.HTML
    price: gr.HTML
    examples: gr.Dataset
    show_base: gr.Checkbox
    blind: gr.Checkbox
    follow: gr.Checkbox
    saved: gr.JSON
    strip: gr.HighlightedText
    along: Frame
    token: gr.Slider
    bars: gr.HTML
    looked_status: gr.HTML
    looked_into: gr.State
    given: Mapping[str, Given]
    given_status: gr.HTML
    rows: gr.Dataframe
    sheet_status: gr.HTML
    answered_rows: gr.HTML
    sheet: gr.State
    knob: gr.Dropdown
    low: gr.Number
    high: gr.Number
    count: gr.Number
    scored_on: gr.Radio
    swept_status: gr.HTML
    plot: gr.Plot
    point: gr.Dropdown
    numbers: gr.HTML
    swept: gr.State
    system: gr.Textbox
    temperature: gr.Slider
    seed: gr.Number
    tokens: gr.Slider
    inside: gr.Accordion
    inside_status: gr.HTML
    frames: tuple[Frame, ...]
    drawn: gr.State
    recipe: gr.Code
    fixed: gr.Row
    starting: gr.HTML
    recipe_status: gr.HTML
    past_box: gr.Accordion
    listing: gr.Radio
    past_status: gr.HTML
    push_name: gr.Textbox
    push_public: gr.Checkbox
    confirm: gr.Row
    kept_status: gr.HTML
    foot: gr.HTML
    offer: gr.State
    buttons: Mapping[str, gr.Button]
    visit: gr.State
    pins: gr.State
    sizes: gr.State
    merges: gr.JSON
    talk: gr.JSON
    kept: gr.BrowserState
    past: gr.BrowserState

    def options(self) -> list[Any]:
        """What is kept in the browser beside the recipe."""
        asked = [self.system, self.temperature, self.seed, self.tokens]
        return [*asked, self.show_base, self.again, self.blind, self.follow]

    def asking(self) -> set[Any]:
        """Inputs of whatever asks models."""
        pickers = self.form.pickers.values()
        own = {self.visit, self.sheet, self.rows, self.pins, self.sizes, self.recipe, self.question}
        return {*own, *pickers, *self.options()}

    def examined(self) -> set[Any]:
        """Outputs of whatever runs the question sheet."""
        return {self.sheet, self.answered_rows, self.sheet_status}

    def sweeping(self) -> set[Any]:
        """Inputs of whatever runs a sweep."""
        return {self.recipe, self.rows, self.knob, self.low, self.high, self.count, self.scored_on}

    def counted(self) -> set[Any]:
        """Inputs of whatever tells what clicks cost."""
        asked = {
            self.sizes,
            self.merges,
            self.talk,
            self.again,
            self.pins,
            self.past,
            self.listing,
            *self.form.pickers.values(),
        }
        return {*asked, *self.options(), *self.sweeping()}

    def curve(self) -> set[Any]:
        """Outputs of whatever draws a sweep."""
        parts = {self.swept, self.swept_status, self.plot, self.point, self.numbers}
        return {*parts, self.buttons["use-value"]}

    def answered(self) -> set[Any]:
        """Outputs of whatever asks models."""
        return {self.status, self.question, *self.compared()}

    def compared(self) -> set[Any]:
        """Outputs of whatever draws the columns from what was said."""
        parts = {part for c in self.columns.values() for part in (c.head, c.chat)}
        parts |= {part for b in self.unnamed for part in (b.box, b.head, b.chat, b.best)}
        parts |= {self.columns[PINNED].box}
        stage = {
            self.row,
            self.booths,
            self.verdict,
            self.legend,
            self.tally,
            self.merges,
            self.talk,
        }
        return {self.visit, *parts, *stage}

    def pictures(self) -> set[Any]:
        """Outputs of whatever draws what a merge did."""
        return {self.inside_status, *(part for frame in self.frames for part in frame.parts())}

    def filled(self) -> set[Any]:
        """Outputs of whatever fills the form from a recipe."""
        texts = {self.recipe, self.preset, self.recipe_status, self.why, self.examples}
        return {*self.form.outputs(), self.columns["c"].box, *texts, *self.checked()}

    def unlocked(self) -> set[Any]:
        """Outputs of whatever switches the form on or off."""
        return {*self.filled(), self.fixed, *self.changing()}

    def changing(self) -> set[gr.Button]:
        """Buttons that change the recipe."""
        return {self.buttons[name] for name in ("swap", "use", "chat-past", "use-value")}

    def checked(self) -> set[Any]:
        """Outputs of whatever checks a recipe."""
        return {self.notes, self.pins, self.sizes}
