"""An answer of the merged model, token by token: which parent it decides like, how far it is from
each, and what every model would have said. It draws what `nexttoken` finds, and knows no events.
"""

from collections.abc import Mapping
from html import escape

from merging import gpu
from merging.nexttoken import Choice, Distance, NextTokens
from merging.ui import charts, look
from merging.ui.pictures import Picture
from merging.ui.visit import PARENTS

ALIKE = 0.1
"""Nats: two parents that differ by less are equally near."""
FAR = 1.0
"""Nats: beyond it nobody would have said this as the merged model does."""
TOLD = 0.005
"""Of a model's probability on tokens that the other lacks: from it on, it is told."""


def strip(found: NextTokens) -> list[tuple[str, str]]:
    """Every token, with the parents that are nearest there."""
    return [
        (text or " ", _near({slot: along[n] for slot, along in found.distances.items()}))
        for n, text in enumerate(found.tokens)
    ]


def _near(distances: Mapping[str, Distance]) -> str:
    """Which parent the merged model is like at one token."""
    parents = {s: d.nats for s, d in distances.items() if s in PARENTS and d.nats is not None}
    if not parents:
        return "not comparable"
    nearest = min(parents.values())
    if nearest > FAR:
        return "neither"
    like = [slot for slot, nats in parents.items() if nats - nearest < ALIKE]
    return "all" if len(like) == len(parents) > 1 else " and ".join(map(look.slot_name, like))


def curve(found: NextTokens) -> Picture | None:
    """The distance from each parent along the answer; None if it has no tokens, or none of them
    could read it."""
    parents = {slot: found.distances[slot] for slot in PARENTS if slot in found.distances}
    if not (parents and found.tokens):
        return None
    shown = [_shown(text) for text in found.tokens]
    lines = [
        charts.Along(
            _title(slot), PARENTS.index(slot), [at.nats for at in along],
            ["<br>".join((f"“{text}”", *_far(at))) for text, at in zip(shown, along, strict=True)],
        )
        for slot, along in parents.items()
    ]  # fmt: skip
    figure = charts.along(lines, shown, reach=FAR)
    charts.mark(figure, f"{FAR:.0f} nat", y=FAR)
    if found.position < len(shown):
        charts.mark(figure, "", x=found.position + 1)
    look_for = (
        "Where one line is at the bottom and another is high, the merge decides like the low one; "
        "where all are above the mark, it decides like none"
    )
    if any(at.nats is None for along in parents.values() for at in along):
        look_for += "; a cross stands where two models cannot be compared"
    facts = " · ".join(f"{_title(slot)} {_about(along)}" for slot, along in parents.items())
    return Picture("How far from each parent", f"{look_for}.", f"KL divergence: {facts}", figure)


def _title(slot: str) -> str:
    return f"{look.MARKS[slot]} {look.slot_name(slot)}"


def _about(along: tuple[Distance, ...]) -> str:
    """A parent's distances in a few words."""
    nats = [at.nats for at in along if at.nats is not None]
    told = [f"{sum(nats) / len(nats):.2f} nats on average, {max(nats):.2f} at most"] if nats else []
    if len(nats) < len(along):
        told.append(f"not comparable at {len(along) - len(nats)} of {len(along)} tokens")
    if (missing := max(at.missing for at in along)) >= TOLD:
        told.append(f"up to {_lacking(missing)}")
    return ", ".join(told)


def _lacking(missing: float) -> str:
    return f"{missing:.0%} on tokens that the other lacks"


def _far(at: Distance) -> tuple[str, ...]:
    """How far a model is from the merged one at a token, and what that leaves out."""
    told = "not comparable" if at.nats is None else f"{at.nats:.2f} nats from merged"
    return (told, _lacking(at.missing)) if at.nats is None or at.missing >= TOLD else (told,)


def bars(found: NextTokens) -> str:
    """Five likeliest tokens of every column, and how far each is from the merged one there."""
    text = found.tokens[found.position] if found.position < len(found.tokens) else None
    what = "After the last token" if text is None else f"Token {found.position + 1}, “{text}”"
    said = (found.said, text)
    far = {s: _far(d[found.position]) for s, d in found.distances.items() if text is not None}
    columns = "".join(
        f"<div>{look.column_head(slot, '', ' · '.join(far.get(slot, ())))}"
        f"{_choices(choices, said)}</div>"
        for slot, choices in sorted(found.choices.items(), key=lambda item: item[0] == gpu.MERGED)
    )
    told = "".join(look.failure(text) for text in found.failed.values())
    return f'<p class="hint">{escape(what)}: what each would have said</p>{told}' + (
        f'<div class="nexts">{columns}</div>'
    )


def _choices(choices: tuple[Choice, ...], said: tuple[str | None, str | None]) -> str:
    """The likeliest, with a mark at what was said: by its name, or by its text if names differ."""
    name, text = said
    marks = [" class=said" if c.token == name or c.text == text else "" for c in choices]
    rows = "".join(
        f"<li{mark}><code>{_shown(c.text)}</code>"
        f'<i style="width:{100 * c.probability:.0f}%"></i><b>{c.probability:.0%}</b></li>'
        for c, mark in zip(choices, marks, strict=True)
    )
    return f"<ol>{rows}</ol>"


def _shown(text: str) -> str:
    """Blanks and line ends can be seen."""
    return escape(text).replace(" ", "␣").replace("\n", "⏎") or "∅"
