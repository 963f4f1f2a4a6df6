"""Finding models: what the pickers list as one types, and which relatives a choice has.

It asks the Hub's lists alone, for seconds at most, and where they are silent the curated models
remain; it checks nothing and fetches nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from merging import gpu, hub
from merging.errors import MergeError
from merging.methods import methods
from merging.opening import RESERVED
from merging.ui import choosing, look
from merging.ui import form as forms
from merging.ui.errors import Updates, Values
from merging.ui.page import Page
from merging.ui.visitor import Visitor

TOGETHER = 4
"""Models in memory at a time: the base, two parents and the merged one."""
BYTES = 2
"""A parameter's, as most models have them."""
SIBLINGS = 4
ALONE = "The Hub gives no answer: only the models that come with this page are listed."


def largest() -> int:
    """Parameters of the largest model of which this machine could hold all that a merge needs."""
    _, room, _ = gpu.room()
    return room // (TOGETHER * BYTES)


def listing(visitor: Visitor, text: str) -> tuple[dict[str, Any], str]:
    """A picker's choices for a text that is being typed, and a word if the Hub is silent.

    Every label contains the text, since the picker itself shows only those that do.
    """
    wanted, note = text.strip(), ""
    words = wanted.lower().split()
    known = dict(forms.listed())
    curated = {n: label for label, n in known.items() if all(w in label.lower() for w in words)}
    try:
        found = hub.search(wanted, largest=largest(), token=visitor.token)
    except MergeError:
        found, note = (), look.hint(ALONE)
    choices = curated | {one.id: _label(one) for one in found}
    exact = {name: label for name, label in choices.items() if name.lower() == wanted.lower()}
    first = exact or ({wanted: wanted} if "/" in wanted else {})  # Enter takes the first
    listed = [[_containing(wanted, label), name] for name, label in (first | choices).items()]
    return {"text": text, "choices": listed}, note


def _containing(text: str, label: str) -> str:
    return label if text.lower() in label.lower() else f"{label} · “{text}”"


def _label(found: hub.Found) -> str:
    """`org/name · 0.49 B · 1.2 M downloads · gated`"""
    size = [_rounded(found.parameters)] if found.parameters else []
    parts = [found.id, *size, f"{_rounded(found.downloads)} downloads"]
    return " · ".join([*parts, "gated"] if found.gated else parts)


def _rounded(count: int) -> str:
    units = (("B", 10**9, 10**8), ("M", 10**6, 10**5), ("K", 10**3, 10**3), ("", 1, 0))
    unit, size = next((unit, size) for unit, size, least in units if count >= least)
    value = count / size
    digits = 0 if value >= 10 or not unit else 1 if value >= 1 else 2
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}{unit}".strip()


def relatives(slot: str, page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Offer what goes with the model in a picker, unless that was merely left as it was."""
    if values[page.looked].get(slot) == _picked(page, values)[slot]:
        yield {page.relatives: gr.skip()}
    else:
        yield _offered(slot, page, visitor, values)


def _picked(page: Page, values: Values) -> dict[str, str]:
    return {slot: (values[p] or "").strip() for slot, p in page.form.pickers.items()}


def _offered(slot: str, page: Page, visitor: Visitor, values: Values) -> Updates:
    """A model's bases, and its siblings for a picker that is free."""
    picked = _picked(page, values)
    name = picked[slot].rpartition("+")[2].partition("@")[0]
    try:
        lineage = hub.lineage(name, token=visitor.token)
    except MergeError:  # no model of the Hub, or no Hub
        lineage = hub.Lineage()
    chips = _chips(picked, values[page.form.method], lineage)
    offered = gr.Dataset(
        samples=[[f"{slot} {target} {id}"] for target, id in chips],
        sample_labels=[f"{look.MARKS[target]} {id}" for target, id in chips],
        label=f"Goes with {look.short(name)}", visible=bool(chips),
    )  # fmt: skip
    return {page.relatives: offered, page.looked: picked}


def _chips(picked: Mapping[str, str], method: str, lineage: hub.Lineage) -> list[tuple[str, str]]:
    """Which picker each relative would fill: an embedded model fits none of the Hub's."""
    rules = methods()[method]
    known = {name.partition("@")[0] for name in picked.values()}
    chips = []
    if rules.base == "required" and known.isdisjoint(lineage.bases):
        chips = [("base", id) for id in lineage.bases]
    free = [key for key in forms.PARENTS[: rules.models[1]] if picked[key] in ("", *RESERVED)]
    siblings = [one.id for one in lineage.siblings if one.id not in known]
    return chips + [(free[0], id) for id in siblings[:SIBLINGS] if free]


def take(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Put the relative that was clicked into its picker, as if it had been chosen there."""
    _, picker, id = _clicked(page, values)
    yield {picker: id}
    yield from choosing.change_models(page, visitor, {**values, picker: id})


def further(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The relatives that are left to offer after one was taken."""
    slot, picker, id = _clicked(page, values)
    yield _offered(slot, page, visitor, {**values, picker: id})


def _clicked(page: Page, values: Values) -> tuple[str, Any, str]:
    slot, target, id = values[page.taken].split(" ", 2)
    return slot, page.form.pickers[target], id
