"""What a merge did inside the model, in pictures, each with one sentence on what to look for.

It knows figures and charts, no events.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, log10
from typing import Any

from plotly.graph_objects import Figure

from merging.figures import angle, length
from merging.inside import Cell, Figures, Inside
from merging.ui import charts
from merging.ui.charts import Fading, Values

PERCENT = "\N{NO-BREAK SPACE}%"
USUAL = 30
"""Of the base's length, in per cent: fine-tunes of the demo change up to 20, of large models 3."""


@dataclass(frozen=True)
class Picture:
    """`look_for` is one sentence; `facts` are the whole model's figures, errors doubled."""

    title: str
    look_for: str
    facts: str
    figure: Figure


def pictures(found: Inside, titles: Sequence[str]) -> list[Picture]:
    """All that say something of this merge; `titles` are the models' names as they are shown."""
    several = len(found.models) > 1
    drawn = [_sizes, *([_cosines, _conflicts] if several else []), _kept, _length, _retained]
    if not found.based:
        drawn = [_apart, _angles, _length] if several else []
    return [picture for draw in drawn if (picture := draw(found, titles))]


def _sizes(found: Inside, titles: Sequence[str]) -> Picture:
    values, errors = _whole(found, "size")
    facts = _facts(titles, values, errors, 100, PERCENT)
    return Picture(
        "Where the models changed",
        "An even, faint map is usual; cells that stand out, above all in tokens or norm, are a "
        "reason to look at the vocabulary.",
        f"length of each change, as a part of the base's: {facts}",
        _maps(found, titles, lambda cell: cell.size, Fading(charts.RGB, PERCENT, USUAL), 100),
    )  # fmt: skip


def _cosines(found: Inside, titles: Sequence[str]) -> Picture:
    values, errors = _whole(found, "cosine")
    return Picture(
        "How alike the changes are",
        "A cosine of 0 to 0.2 is what different skills look like; above 0.5 the models learnt "
        "alike, below 0 they pull apart.",
        f"cosine: {_facts(_pairs(titles), values, errors)}",
        _maps(found, _pairs(titles), lambda cell: cell.cosine),
    )


def _conflicts(found: Inside, titles: Sequence[str]) -> Picture:
    own, chance = "signs differ", "by chance"
    along = {own: _along(found, "conflict", 100), chance: _along(found, "chance", 100)}
    errors = [_times(each["error"]["conflict"], 100) for each in found.layers.values()]
    whole, error = found.whole, found.whole["error"]
    return Picture(
        "How much they disagree",
        "Only a line far from the dashed one, which is what chance would give, says something.",
        f"of the entries that all change signs differ in "
        f"{_about(whole['conflict'], error['conflict'], 100, PERCENT)}, by chance in "
        f"{_about(whole['chance'], None, 100, PERCENT)}",
        charts.lines([*found.layers], along, {own: errors}, unit=PERCENT),
    )


def _kept(found: Inside, titles: Sequence[str]) -> Picture | None:
    if not found.trims:
        return None
    values, errors = _whole(found, "kept")
    along = {
        title: [_times(layer["kept"][model], 100) for layer in found.layers.values()]
        for title, model in zip(titles, found.models, strict=True)
    }
    return Picture(
        "What the trim keeps",
        "At the same density, the higher a line, the more of a change sits in its largest entries, "
        "and the less is lost by dropping the others.",
        f"energy that is kept: {_facts(titles, values, errors, 100, PERCENT)}",
        charts.lines([*found.layers], along, unit=PERCENT, models=True),
    )


def _length(found: Inside, titles: Sequence[str]) -> Picture:
    along = {"merged": [length(layer) for layer in found.layers.values()]}
    count, what = len(titles), "change" if found.based else "weights"
    marks = {"the models' own": 1.0}
    look_for = (
        "On the mark they are as long as the models' own, as an arc keeps them; below it averaging "
        "has made them shorter."
    )
    if found.based:
        marks = {f"average 1/√{count}": count**-0.5, f"sum √{count}": count**0.5}
        look_for = (
            "The marks are for changes of one length at right angles to each other: between them "
            "is usual, above 2 the step is too long."
        )
    if count == 1:
        marks = {"the model's own": 1.0}
        look_for = (
            "On the mark it is as long as the model's own change: a trim makes it shorter, a "
            "lambda above 1 longer."
        )
    figure = charts.lines([*found.layers], along, reach=max(marks.values()))
    for told, at in marks.items():
        charts.mark(figure, told, y=at)
    return Picture(
        f"Length of the merged {what}",
        look_for,
        f"length of the merged {what}, as a part of the models' mean: "
        f"{_about(length(found.whole), None)}",
        figure,
    )


def _retained(found: Inside, titles: Sequence[str]) -> Picture:
    values, errors = (
        list(each["merged"]["retained"].values()) for each in (found.whole, found.whole["error"])
    )
    facts, ticks = _facts(titles, values, errors), None
    look_for = "At 1 all of its change is there, at 0 nothing of it."
    if len(titles) > 1:
        averages = _averages(found.whole)
        ticks = "an average", averages
        facts += f"; in an average: {_facts(titles, averages, [None] * len(titles))}"
        look_for = (
            "A bar that ends before its tick has less of that model than a plain average of all "
            "would have; at 1 all of its change is there."
        )
    figure = charts.bars(titles, values, errors, [_about(value, None) for value in values], ticks)
    charts.mark(figure, "all", x=1.0)
    return Picture("What is kept of each model", look_for, facts, figure)


def _averages(figures: Figures) -> list[float | None]:
    """What is kept of each change if all n are averaged: Σⱼ<δⱼ, δᵢ> / (n‖δᵢ‖²)."""
    norms: Mapping[str, float] = figures["norm"]
    total = dict(norms)  # Σⱼ<δⱼ, δᵢ> / ‖δᵢ‖
    for pair in figures["cosine"]:
        one, other = pair["models"]
        total[one] += norms[other] * (pair["value"] or 0.0)
        total[other] += norms[one] * (pair["value"] or 0.0)
    return [total[m] / norms[m] / len(norms) if norms[m] else None for m in norms]


def _apart(found: Inside, titles: Sequence[str]) -> Picture:
    values, errors = _whole(found, "apart")
    pairs = _pairs(titles)
    facts = _facts(pairs, values, errors, 100, PERCENT)
    return Picture(
        "How far apart the models are",
        "An even, faint map is usual for fine-tunes of one model; strangers are 100 % and more "
        "apart, and cannot be merged.",
        f"length of the difference, as a part of the first's: {facts}",
        _maps(found, pairs, lambda cell: cell.size, _grey(pairs, PERCENT, 100), 100),
    )  # fmt: skip


def _angles(found: Inside, titles: Sequence[str]) -> Picture:
    values, _ = _whole(found, "cosine")
    pairs, angles = _pairs(titles), [angle(value) for value in values]
    facts = f"angle: {_facts(pairs, angles, [None] * len(pairs), 1, '°')}"
    done = [cell.outcomes for cell in found.cells.values() if cell.outcomes]
    look_for = "The wider an angle, the shorter an average is than the models themselves."
    if done:
        spherical = sum("LERP" not in outcomes for outcomes in done)
        facts += f" · spherical in {spherical} of {len(done)} places, LERP in the others"
        look_for = (
            "In dotted cells LERP was used, for one tensor at least: below 1.8° the arc is as good "
            "as its chord, and above 178°, or beside zeros, it has no direction."
        )
    figure = _maps(found, pairs, lambda cell: cell.angle, _grey(pairs, "°"))
    return Picture("The angle between the models", look_for, facts, figure)


def _grey(pairs: Sequence[str], unit: str, reach: float = 0) -> Fading:
    return Fading([charts.GREY] * len(pairs), unit, reach)


def _maps(
    found: Inside, titles: Sequence[str], of: Callable[[Cell], Values],
    fading: Fading | None = None, factor: float = 1,
) -> Figure:  # fmt: skip
    columns = [*found.layers]
    rows = list(dict.fromkeys(module for _, module in found.cells))
    cells = [[found.cells.get((column, row)) for column in columns] for row in rows]

    def value(cell: Cell | None, number: int) -> float | None:
        return _times(of(cell)[number], factor) if cell else None

    grids = {
        title: [[value(cell, number) for cell in row] for row in cells]
        for number, title in enumerate(titles)
    }
    dots = [["•" if cell and "LERP" in cell.outcomes else "" for cell in row] for row in cells]
    marked = dots if any(map(any, dots)) else None
    return charts.maps(grids, columns, rows, fading, marked)


def _pairs(titles: Sequence[str]) -> list[str]:
    return [f"{one} and {other}" for one, other in combinations(titles, 2)]


def _whole(found: Inside, name: str) -> tuple[list[float | None], list[float | None]]:
    """A figure of the whole model, of each model or pair, and its errors."""
    value, error = _listed(found.whole[name]), _listed(found.whole["error"][name])
    return value, error


def _listed(figure: Any) -> list[float | None]:
    return [pair["value"] for pair in figure] if isinstance(figure, list) else [*figure.values()]


def _along(found: Inside, name: str, factor: float) -> list[float | None]:
    return [_times(layer[name], factor) for layer in found.layers.values()]


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _facts(
    titles: Sequence[str], values: Values, errors: Values, factor: float = 1, unit: str = ""
) -> str:
    told = zip(titles, values, errors, strict=True)
    return " · ".join(f"{name} {_about(value, error, factor, unit)}" for name, value, error in told)


def _about(value: float | None, error: float | None, factor: float = 1, unit: str = "") -> str:
    """A figure with twice its error.

    >>> _about(0.41682, 0.0123), _about(0.0012, 0.00031), _about(8.41, None, 1, "°")
    ('0.42 ± 0.02', '0.0012 ± 0.0006', '8.4°')
    """
    if value is None:
        return "–"
    value, off = value * factor, 2 * (error or 0) * factor
    digits = 2 if not unit else 1 if abs(value) < 20 else 0
    if off:
        digits = min(5, max(digits, ceil(-log10(off))))  # one that is not 0
    told = f" ± {off:.{digits}f}" if off else ""
    return f"{value:.{digits}f}{told}{unit}"
