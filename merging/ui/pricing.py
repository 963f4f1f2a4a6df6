"""What the next clicks will ask of the visitor's GPU time, where it is granted by the second.

It counts as the jobs will; where a page runs on a device of its own there is nothing to say.
"""

from collections.abc import Iterator

from merging import gpu
from merging.errors import MergeError
from merging.ui import look, sheet, sweeping
from merging.ui.errors import Updates, Values
from merging.ui.page import Page
from merging.ui.settings import names
from merging.ui.visitor import Visitor

CHARACTERS = 4
"""Of a token, about: an answer that is looked into is as long as its tokens allow, at most."""


def show(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Seconds for each kind of click, by who would answer, and what is set."""
    if values[page.sizes] is None:
        yield {page.price: look.UNPRICED}
        return
    tokens, asked, own = int(values[page.tokens] or 256), _asked(page, values), _own(page, values)
    clicks = {
        "Ask, Retry or New seed": asked.ask(tokens),
        "question sheet": asked.ask(tokens, _questions(page, values)),
        "looking into an answer": asked.look(CHARACTERS * tokens),
        "Merge": own.merge(tokens, values[page.talk] if values[page.again] else 0),
    }
    told = [f"{what} {seconds} s" for what, seconds in clicks.items()]
    told += _sweep(page, values, own)
    yield {page.price: look.hint(f"What a click asks of your GPU time: {' · '.join(told)}.")}


def _asked(page: Page, values: Values) -> gpu.Bill:
    """Of the columns that would answer, and all that their merges are made of."""
    parents, sizes = names(page, values).values(), values[page.sizes]
    merges = dict(values[page.merges])
    within = {name for own in merges.values() for name in own}
    beside = {values[page.pins].get(name, name) for name in parents} - within
    unknown = max(sizes.values(), default=0)  # a base that the recipe does not name: about as large
    size = sum(sum(own.values()) for own in merges.values())
    size += sum(sizes.get(name, unknown) for name in beside)
    return gpu.Bill(size, len(parents) + len(values[page.merges]))


def _own(page: Page, values: Values) -> gpu.Bill:
    """Of the recipe and its models."""
    return gpu.Bill(sum(values[page.sizes].values()), len(values[page.sizes]))


def _questions(page: Page, values: Values) -> int:
    try:
        return len(sheet.read(values[page.rows] or ()))
    except MergeError:  # of a sheet that could not be run
        return 1


def _sweep(page: Page, values: Values, own: gpu.Bill) -> Iterator[str]:
    """Nothing where there is nothing to score."""
    try:
        given = sweeping.exam_of(page, values)
    except MergeError:
        return
    seconds = own.sweep(given.tokens, int(values[page.count] or 0))
    most = " or more, too much for one click" if seconds >= gpu.most() else ""
    yield f"sweep {seconds} s{most}"
