"""A few entries of a tensor, step by step: a grid of cells a step, and each entry's way in words.

It draws what `stepwise` finds. A cell's colour is its sign, its shade its size, against the largest
of the inputs; numbers are in its title, and in the words of the entry that is chosen.
"""

from collections.abc import Iterator, Sequence
from html import escape
from math import floor, log10

from torch import Tensor

from merging.stepwise import Shown, View
from merging.ui import look

LEAST = 14
"""Per cent of its colour that a cell has at least, unless it is 0."""
CURVE = 0.7
"""Below 1, so that small entries can be told from 0."""
FEW = 3
"""Steps of which fewer leave room for the models' grids beside each other."""
SLOTS = "abc"
NOBODY = "nobody votes"


def drawn(view: View) -> str:
    """All steps beside each other, what the colours mean, and the chosen entry's way."""
    first = view.stages[0].patch
    sections, before = [], first
    for number, stage in enumerate(view.stages):
        sections.append(_section(view, number, stage, before))
        before = before if stage.shared else stage.patch
    chosen = _first_of_note(view)
    ways = "".join(
        f'<p data-cell="{n}"{" class=chosen" if n == chosen else ""}>{_way(view, n)}</p>'
        for n in range(first[0].numel())
    )
    brief = " brief" if len(sections) < FEW else ""
    return (
        f'<div class="stages{brief}" data-columns="{first.shape[2]}" data-start="{chosen}">'
        f'{"".join(sections)}</div><div class="way" role="status">{ways}</div>{_legend(view)}'
    )


def _section(view: View, number: int, stage: Shown, before: Tensor) -> str:
    vote = stage.shared and stage is not view.stages[-1]
    grids = "".join(
        _grid(view, stage, model, before, vote=vote, focus=number == model == 0)
        for model in range(len(stage.patch))
    )
    told = f"{stage.help} {_counted(view, number, before, vote)}"
    return (
        f'<section class="stage"><h3><i>{number + 1}</i>{escape(stage.name)}</h3>'
        f'<div class="grids">{grids}</div><p>{escape(told.strip())}</p></section>'
    )


def _grid(view: View, stage: Shown, model: int, before: Tensor, *, vote: bool, focus: bool) -> str:
    """One tensor's entries. `focus`: where the keyboard comes in."""
    values, earlier = stage.patch[model].flatten().tolist(), before.flatten(1).T.tolist()
    name = stage.name if stage.shared else _name(model)
    cells = []
    for n, value in enumerate(values):
        kind, glyph = _kind(value, earlier[n], None if stage.shared else model, vote)
        shade = 60 if vote else _shade(value, _scale(view))
        told = f"{name} {(glyph or NOBODY) if vote else _number(view, value)}"
        key = f' role="button" tabindex="{-1 if n else 0}" aria-label="{told}"' if focus else ""
        cells.append(
            f'<i data-cell="{n}" class="{kind}" style="--v:{shade}%" '
            f'title="{told}"{key}>{glyph}</i>'
        )
    there = sum(value != 0 for value in values)
    role = 'role="group" aria-label="Entries: arrow keys choose one"' if focus else (
        f'role="img" aria-label="{escape(stage.name)}, {name}: {there} of {len(values)} are not 0"'
    )  # fmt: skip
    return (
        f"<figure><figcaption>{_caption(view, stage, model, vote)}</figcaption>"
        f'<div class="cells" {role} style="--n:{stage.patch.shape[2]}">{"".join(cells)}</div>'
        "</figure>"
    )


def _caption(view: View, stage: Shown, model: int, vote: bool) -> str:
    """Whose entries they are, and how many are not 0; at first by name."""
    values = stage.patch[model]
    there, of = int(values.count_nonzero()), values.numel()
    count = f"<span>{there} of {of}</span>" if there < of else ""
    if vote:
        return "<b>Vote</b>"
    if stage.shared:
        return f'<span class="mark merged">{look.MARKS["merged"]}</span> <b>Merged</b>{count}'
    title = f" · {escape(look.short(view.models[model]))}" if stage is view.stages[0] else ""
    return f"{_mark(model)} <b>{_name(model)}</b>{title}{count}"


def _kind(value: float, earlier: Sequence[float], model: int | None, vote: bool) -> tuple[str, str]:
    """A cell's class, and what is written in it."""
    if vote and not any(earlier):
        return "none", ""
    sign = "plus" if value > 0 else "minus" if value < 0 else "none"
    if vote:
        differ = " differ" if min(earlier) < 0 < max(earlier) else ""
        return f"{sign}{differ}", "+" if value > 0 else "−"
    if model is not None and value == 0 != earlier[model]:
        return f"lost {'plus' if earlier[model] > 0 else 'minus'}", ""
    return sign, ""


def _counted(view: View, number: int, before: Tensor, vote: bool) -> str:
    """What happened in numbers: here, and in the whole tensor."""
    stage, size, here = view.stages[number], view.step.size, before[0].numel()
    if vote:
        differ = int(((before.amax(0) > 0) & (before.amin(0) < 0)).sum())
        whole = next(s.differ for s in reversed(view.stages[:number]) if not s.shared)
        return f"They disagree in {differ} of these {here}, in {whole:,} of all {size:,}."
    if number == len(view.stages) - 1:
        return "" if view.arrows else _lengths(view)
    names = ", ".join(f"{_name(m)} {count:,}" for m, count in enumerate(stage.counts))
    return f"In the whole tensor: {names} of {size:,}." if min(stage.counts) < size else ""


def _lengths(view: View) -> str:
    *models, merged = view.lengths
    own = ", ".join(f"{_name(m)} {length:#.4g}" for m, length in enumerate(models))
    return f"Lengths: {own}, merged {merged:#.4g}."


def _way(view: View, cell: int) -> str:
    """What became of one entry, stage by stage."""
    first, *others = view.stages
    columns = first.patch.shape[2]
    row, column = view.row + cell // columns + 1, view.column + cell % columns + 1
    at = f"Row {row}, column {column}" if len(view.step.shape) > 1 else (
        f"Entry {(view.row * columns) + cell + 1}"
    )  # fmt: skip
    parts, before = [f"<b>{at}</b>"], _entries(first, cell)
    symbol = "δ" if view.base is not None else ""
    parts.append(", ".join(
        f"{_mark(m)} {symbol}{_name(m)} = {_number(view, value)}" for m, value in enumerate(before)
    ))  # fmt: skip
    for stage in others:
        now = _entries(stage, cell)
        parts.append(f"<b>{escape(stage.name)}</b> {', '.join(_became(view, stage, now, before))}")
        before = before if stage.shared else now
    if view.base is not None:
        base, merged = (t.flatten()[cell].item() for t in (view.base, view.merged))
        parts.append(f"<b>Weight</b> {_number(view, base)} becomes {_number(view, merged)}")
    return " → ".join(parts)


def _became(
    view: View, stage: Shown, now: Sequence[float], before: Sequence[float]
) -> Iterator[str]:
    if stage.shared and stage is not view.stages[-1]:
        yield ("+" if now[0] > 0 else "−") if any(before) else NOBODY
    elif stage.shared:
        yield _number(view, now[0])
    else:
        for model, (value, was) in enumerate(zip(now, before, strict=True)):
            told = "kept" if value == was else "dropped" if value == 0 else _number(view, value)
            yield f"{_name(model)} {'0' if value == was == 0 else told}"


def _entries(stage: Shown, cell: int) -> list[float]:
    values: list[float] = stage.patch.flatten(1)[:, cell].tolist()
    return values


def _first_of_note(view: View) -> int:
    """The first entry in which the models disagree before the vote, else the first."""
    before = [s.patch for s in view.stages if not s.shared][:2][-1]
    differ = ((before.amax(0) > 0) & (before.amin(0) < 0)).flatten()
    return int(differ.nonzero()[0, 0]) if bool(differ.any()) else 0


def _legend(view: View) -> str:
    votes = len(view.stages) > 2
    lost = '<li><i class="lost minus"></i>dropped in this step</li>' if votes else ""
    ring = '<li><i class="minus differ" style="--v:60%"></i>signs differed</li>' if votes else ""
    return (
        '<ul class="key"><li><i class="plus" style="--v:80%"></i>above 0</li>'
        '<li><i class="minus" style="--v:80%"></i>below 0</li>'
        f"<li>the stronger, the larger</li>{lost}{ring}"
        "<li>Click an entry, or use the arrow keys, to follow it.</li></ul>"
    )


def _scale(view: View) -> float:
    return float(view.stages[0].patch.abs().max()) or 1.0


def _shade(value: float, scale: float) -> int:
    share = min(1.0, abs(value) / scale)
    return round(LEAST + (100 - LEAST) * share**CURVE) if value else 0


def _number(view: View, value: float) -> str:
    """With its sign, and so many decimals that the largest of the inputs has four digits."""
    decimals = min(9, max(1, 3 - floor(log10(_scale(view)))))
    return f"{value:+.{decimals}f}".replace("-", "−") if value else "0"


def _name(model: int) -> str:
    return chr(ord("A") + model)


def _mark(model: int) -> str:
    slot = SLOTS[model] if model < len(SLOTS) else "base"
    return f'<span class="mark {slot}">{look.MARKS[slot]}</span>'
