"""What the next clicks will ask of the visitor's GPU time, where it is granted by the second.

It counts as the jobs will; where a page runs on a device of its own there is nothing to say.
"""

from collections.abc import Iterator

from merging import gpu
from merging.errors import MergeError
from merging.ui import look, sheet
from merging.ui.errors import Updates, Values
from merging.ui.page import Page
from merging.ui.visitor import Visitor

CHARACTERS = 4
"""Of a token, about: an answer that is looked into is as long as its tokens allow, at most."""


def show(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:  # noqa: ARG001
    """Seconds for each kind of click, by the models and the length of answers that are set."""
    bill: gpu.Bill | None = values[page.bill]
    if bill is None:
        yield {page.price: ""}
        return
    tokens = int(values[page.tokens] or 256)
    asked = [
        (bill.ask(tokens), "Ask, Retry or New seed"),
        (bill.ask(tokens, _questions(values[page.rows])), "question sheet"),
        (bill.look(CHARACTERS * tokens), "looking into an answer"),
        (bill.merge(tokens), "Merge"),
    ]
    told = " · ".join(f"{what} {seconds} s" for seconds, what in asked)
    yield {page.price: look.hint(f"What a click asks of your GPU time: {told}.")}


def _questions(rows: list[list[str]] | None) -> int:
    try:
        return len(sheet.read(rows or ()))
    except MergeError:  # of a sheet that could not be run
        return 1
