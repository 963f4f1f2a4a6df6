"""What the next clicks will ask of the visitor's GPU time, where it is granted by the second.

It counts as the jobs will; where a page runs on a device of its own there is nothing to say.
"""

from collections.abc import Iterator

from merging import gpu
from merging.errors import MergeError
from merging.ui import history, look, sheet, sweeping
from merging.ui.errors import Updates, Values
from merging.ui.page import Page
from merging.ui.settings import names
from merging.ui.visitor import Visitor

CHARACTERS = 4
"""Characters a token, about: an answer that is looked into is taken to be of full length."""


def show(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Seconds for each kind of click, by who would answer, and what is set."""
    told = [] if values[page.sizes] is None else [*_checked(page, values)]
    told += _past(page, values)
    said = f"What a click asks of your GPU time: {' · '.join(told)}."
    yield {page.price: look.hint(said) if told else look.UNPRICED}


def _checked(page: Page, values: Values) -> Iterator[str]:
    """Of the recipe that is in the form."""
    tokens, asked, own = _tokens(page, values), _asked(page, values), _own(page, values)
    _, characters = values[page.talk]
    clicks = {
        "Ask, Retry or New seed": asked.ask(tokens),
        "question sheet": asked.ask(tokens, _questions(page, values)),
        "looking into an answer": asked.look(CHARACTERS * tokens + characters),
        "Merge": own.merge(tokens, _again(page, values)),
    }
    yield from (f"{what} {seconds} s" for what, seconds in clicks.items())
    yield from _sweep(page, values, own)


def _past(page: Page, values: Values) -> Iterator[str]:
    """Of the earlier merge that is chosen, which answers alone what a merge answers again."""
    past = history.chosen(values[page.past], values[page.listing])
    if past is None:
        return
    own, tokens = gpu.Bill(sum(past.sizes.values()), 1), _tokens(page, values)
    if again := _again(page, values):
        yield f"pinning the chosen merge {own.ask(tokens, again)} s"
    yield f"chatting with the chosen merge {own.merge(tokens, again)} s"


def _tokens(page: Page, values: Values) -> int:
    return int(values[page.tokens] or 256)


def _again(page: Page, values: Values) -> int:
    """Questions that a merge answers again."""
    questions, _ = values[page.talk]
    return int(questions) if values[page.again] else 0


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
