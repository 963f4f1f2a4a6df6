"""How figures are drawn: maps of layers and modules, lines along layers or a text, bars, and marks.

It knows plotly and colours, and not what the figures say. INK and the like and the models' colours
follow the page into the dark, where the style sheet puts others in place of these very values. Maps
fade from nothing into a colour, which reads on either ground.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#2563eb", "#b45309", "#0d9488")
"""Of models a, b and c, as in assets/page.css."""
SYMBOLS = ("diamond", "circle", "triangle-up")
INK, MUTED, LINE, PAPER = "#0f172a", "#5b6475", "#e3e7ee", "#f7f8fa"
CLEAR = "rgba(0,0,0,0)"
Colour = tuple[int, int, int]
RGB: tuple[Colour, ...] = ((37, 99, 235), (180, 83, 9), (13, 148, 136))
"""The models' colours once more, for what fades into them."""
GREY: Colour = (100, 116, 139)
VIOLET, GREEN = (139, 92, 246), (22, 163, 74)
"""Of values below and above 0: those who confuse red and green tell these two apart."""
FAINT = 0.05
"""Opacity where there is nothing: a cell can be seen all the same."""
ROW, GAP, FOOT = 18, 34, 40
"""Pixels: a map's row, what is above each map, and what is beneath the last."""
TICKS = 10
"""Layers that are named at most: more would run into each other on a telephone."""
LETTERS = 36
"""Letters beneath a picture at most, for the same reason; a number takes six."""
MANY = 60
"""Points of a line from which on they are small."""

Values = Sequence[float | None]


@dataclass(frozen=True)
class Fading:
    """What maps fade into from 0 on, each into its colour, all on one scale: up to the largest
    value, and at least to `reach`, below which all is faint."""

    colours: Sequence[Colour]
    unit: str
    reach: float = 0


def maps(
    grids: Mapping[str, Sequence[Values]], columns: Sequence[str], rows: Sequence[str],
    fading: Fading | None = None, marked: Sequence[Sequence[str]] | None = None,
) -> go.Figure:  # fmt: skip
    """One map above the other, by title; `grids` are (rows, columns).

    They are drawn from -1 to 1 where they do not fade. `marked` are texts on the cells.
    """
    height = ROW * len(rows)
    whole = len(grids) * (height + GAP) + FOOT
    figure = make_subplots(
        len(grids), 1, shared_xaxes=True, subplot_titles=[*grids],
        vertical_spacing=GAP / max(1, whole - GAP - FOOT) if len(grids) > 1 else 0,
    )  # fmt: skip
    values = [v for grid in grids.values() for row in grid for v in row if v]
    low, most = (0, max([fading.reach, *values]) or 1) if fading else (-1, 1)
    unit = fading.unit if fading else ""
    for number, grid in enumerate(grids.values()):
        scale = _fading(fading.colours[number]) if fading else _both_ways()
        figure.add_trace(go.Heatmap(
            z=grid, x=columns, y=rows, colorscale=scale, zmin=low, zmax=most,
            xgap=1, ygap=1, text=marked,
            texttemplate="%{text}" if marked else None, textfont={"color": INK},
            hovertemplate=f"layer %{{x}} · %{{y}}: %{{z:.3~g}}{unit}<extra></extra>",
            colorbar=_bar(number, height, whole) | {"ticksuffix": unit},
        ), number + 1, 1)  # fmt: skip
    _dress(figure, whole, top=GAP, bottom=FOOT)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False, type="category", nticks=TICKS)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure


def lines(
    columns: Sequence[str], drawn: Mapping[str, Values], errors: Mapping[str, Values] | None = None,
    *, unit: str = "", models: bool = False, reach: float = 0,
) -> go.Figure:  # fmt: skip
    """Lines by name along the layers; beside lines with `errors`, which are doubled, those without
    are dashed. The scale goes from 0 to above all values and `reach`.

    With `models` they are in the models' colours, each with its own points.
    """
    figure, off = go.Figure(), errors or {}
    for number, (name, values) in enumerate(drawn.items()):
        dashed = bool(off) and name not in off
        colour = COLOURS[number] if models else MUTED if dashed else INK
        figure.add_trace(go.Scatter(
            x=columns, y=values, name=name, mode="lines" if dashed else "lines+markers",
            line={"color": colour, "width": 2, "dash": "dash" if dashed else "solid"},
            marker={"size": 7, "symbol": SYMBOLS[number] if models else "circle"},
            error_y=_errors(off.get(name), colour),
            hovertemplate=f"layer %{{x}}: %{{y:.3~g}}{unit}<extra>{name}</extra>",
        ))  # fmt: skip
    _dress(figure, 270, top=GAP, bottom=FOOT)
    figure.update_layout(showlegend=len(drawn) > 1)
    figure.update_xaxes(type="category", showgrid=False, nticks=TICKS)
    most = max([reach, *(v for values in drawn.values() for v in values if v)], default=1)
    figure.update_yaxes(ticksuffix=unit, range=[0, 1.15 * most])
    return figure


@dataclass(frozen=True)
class Along:
    """A model's values along a text, and what is told of each where it is pointed at; its colour
    and points are those of model `number`."""

    name: str
    number: int
    values: Values
    told: Sequence[str]


def along(drawn: Sequence[Along], pieces: Sequence[str], *, reach: float) -> go.Figure:
    """A line a model over a text's pieces, the first of which is 1. The scale goes from 0 to above
    all values and `reach`. Where a value is None a line has a gap, and a cross beneath it.
    """
    figure, places = go.Figure(), [*range(1, len(pieces) + 1)]
    most = max([reach, *(v for line in drawn for v in line.values if v)])
    below, gaps = -0.06 * most, False
    for row, line in enumerate(drawn, 1):
        colour = COLOURS[line.number]
        points = {"size": 7 if len(pieces) < MANY else 4, "symbol": SYMBOLS[line.number]}
        cross = {"size": 8, "symbol": "x-thin", "line": {"color": colour, "width": 2}}
        crosses = [below * row if value is None else None for value in line.values]
        gaps |= any(crosses)
        for values, mode, marker in (
            (line.values, "lines+markers", points), (crosses, "markers", cross),
        ):  # fmt: skip
            figure.add_trace(go.Scatter(
                x=places, y=values, name=line.name, mode=mode, marker=marker, text=line.told,
                line={"color": colour, "width": 2}, showlegend=marker is points,
                hovertemplate=f"{line.name} %{{text}}<extra></extra>",
            ))  # fmt: skip
    _dress(figure, 270, top=GAP, bottom=FOOT)
    figure.update_layout(hovermode="x unified")
    figure.update_yaxes(range=[below * (1 + len(drawn) * gaps), 1.15 * most])
    figure.update_xaxes(range=[0.5, len(pieces) + 0.5], showgrid=False)
    if sum(max(2, len(piece)) for piece in pieces) <= LETTERS:
        figure.update_xaxes(tickvals=places, ticktext=pieces)
    else:
        figure.update_xaxes(tick0=1, dtick=ceil(6 * len(pieces) / LETTERS))
    return figure


def bars(
    names: Sequence[str], values: Values, errors: Values, texts: Sequence[str],
    ticks: tuple[str, Values] | None = None,
) -> go.Figure:  # fmt: skip
    """A bar a model, from the top down, in the models' colours; `errors` are doubled. Across each
    may be a tick, by the name of all ticks."""
    figure = go.Figure(go.Bar(
        x=values, y=names, orientation="h", marker={"color": COLOURS[: len(names)]}, text=texts,
        textposition="inside", insidetextanchor="start", insidetextfont={"color": PAPER},
        textangle=0, error_x=_errors(errors, INK), hoverinfo="skip", width=0.6, showlegend=False,
    ))  # fmt: skip
    _dress(figure, GAP + 44 * len(names) + FOOT, top=GAP, bottom=FOOT)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(rangemode="tozero")
    if ticks:
        name, places = ticks
        figure.add_trace(go.Scatter(
            x=places, y=names, name=name, mode="markers", showlegend=True, hoverinfo="skip",
            marker={"symbol": "line-ns", "size": 30, "line": {"color": INK, "width": 3}},
        ))  # fmt: skip
    return figure


def mark(figure: go.Figure, text: str, *, x: float | None = None, y: float | None = None) -> None:
    """A dotted line across, at x or y, with its text at its end."""
    line = {"color": MUTED, "width": 1.5, "dash": "dot"}
    font = {"size": 12, "color": MUTED}
    if y is not None:
        figure.add_hline(y, line=line, annotation={"text": text, "font": font, "yshift": 3},
                         annotation_position="top left")  # fmt: skip
    if x is not None:
        figure.add_vline(x, line=line, annotation={"text": text, "font": font},
                         annotation_position="top")  # fmt: skip


def _bar(number: int, height: int, whole: int) -> dict[str, Any]:
    """The scale beside a map, by its place from the top."""
    inner = whole - GAP - FOOT
    middle = 1 - (number * (height + GAP) + height / 2) / inner
    return {
        "len": height / inner, "y": middle, "yanchor": "middle", "ypad": 0, "thickness": 8,
        "outlinewidth": 0, "nticks": 4, "ticks": "",
    }  # fmt: skip


def _fading(colour: Colour) -> list[list[Any]]:
    return [[0, _rgba(colour, FAINT)], [1, _rgba(colour, 1)]]


def _both_ways() -> list[list[Any]]:
    return [[0, _rgba(VIOLET, 1)], [0.5, _rgba((128, 128, 128), 2 * FAINT)], [1, _rgba(GREEN, 1)]]


def _rgba(colour: Colour, opacity: float) -> str:
    return f"rgba({', '.join(map(str, colour))}, {opacity})"


def _errors(errors: Values | None, colour: str) -> dict[str, Any] | None:
    if errors is None:
        return None
    doubled = [None if e is None else 2 * e for e in errors]
    return {"array": doubled, "color": colour, "thickness": 1, "width": 2}


def _dress(figure: go.Figure, height: int, *, top: int, bottom: int) -> None:
    """No ground of its own, no dragging, which would catch a finger that scrolls the page."""
    figure.update_layout(
        template="none", height=height, margin={"l": 56, "r": 8, "t": top, "b": bottom},
        paper_bgcolor=CLEAR, plot_bgcolor=CLEAR, dragmode=False,
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "bgcolor": CLEAR},
        hoverlabel={"bgcolor": "#111827", "bordercolor": "#111827", "font": {"color": "#fff"}},
    )  # fmt: skip
    figure.update_xaxes(fixedrange=True, gridcolor=LINE, zeroline=False, tickangle=0, ticks="")
    figure.update_yaxes(fixedrange=True, gridcolor=LINE, zeroline=False, ticks="")
