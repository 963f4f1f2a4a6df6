"""Draws a sweep: the merge's curve, the parents as lines, and all numbers in a table."""

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from merging import ratings
from merging.exam import PERPLEXITY, Measure, Result
from merging.ratings import Curve
from merging.ui import look

INK = "#64748b"
"""Of all that the page's style gives the colour of its text."""
GRID = "rgba(128,128,128,.25)"
SYMBOLS = {"a": "diamond", "b": "circle", "c": "triangle-up"}
DASHES = {"a": "dash", "b": "dot", "c": "dashdot"}
PANEL = 300
"""Pixels of height."""


def figure(curve: Curve, slots: Mapping[str, str], span: tuple[float, float]) -> go.Figure | None:
    """The sweep so far over the whole `span` of values; None before the parents are scored.

    `slots` are the parents' columns by name. Shares of answers stand in one panel, each parent's
    text in its own. Colours are the light page's, which its style turns into those of the dark one.
    """
    told = curve.measures()
    if not told:
        return None
    panels = [[m] for m in told] if told[0].unit == PERPLEXITY else [told]
    drawn = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.08)
    for row, panel in enumerate(panels, 1):
        for measure in panel:
            alone = None if len(panel) == 1 else measure.whose
            trace = _merged(curve, measure, slots.get(alone or ""))
            drawn.add_trace(trace.update(showlegend=row == 1), row=row, col=1)
        for name, result in curve.parents.items():
            who = f"{look.MARKS[slots[name]]} {curve.called[name]} itself"
            trace = _parent(slots[name], who, panel[0].of(result), span)
            drawn.add_trace(trace.update(showlegend=row == 1), row=row, col=1)
        _axis(drawn, row, panel[0])
    _laid_out(drawn, curve, span, len(panels))
    return drawn


def _merged(curve: Curve, measure: Measure, slot: str | None) -> go.Scatter:
    """The merge's scores; of the questions that one parent alone has right, in its colour."""
    colour = look.NEAR[slot.upper()] if slot else INK
    points = sorted(curve.points.items())
    return go.Scatter(
        x=[value for value, _ in points], y=[measure.of(result) for _, result in points],
        name=f"merged, {measure.label}" if slot or measure.whose is None else "merged",
        mode="lines+markers",
        line={"color": colour, "width": 2 if slot else 4},
        marker={"symbol": SYMBOLS[slot] if slot else "star", "size": 8 if slot else 11},
    )  # fmt: skip


def _parent(slot: str, who: str, score: float | None, span: tuple[float, float]) -> go.Scatter:
    return go.Scatter(
        x=span, y=[score, score], name=who, mode="lines",
        line={"color": look.NEAR[slot.upper()], "width": 2.5, "dash": DASHES[slot]},
    )  # fmt: skip


def _axis(drawn: go.Figure, row: int, measure: Measure) -> None:
    shares = measure.unit != PERPLEXITY
    said = measure.unit if shares else f"{measure.label}: {measure.unit}"
    drawn.update_yaxes(
        row=row, col=1, title={"text": said, "font": {"size": 13}}, gridcolor=GRID, nticks=6,
        type="linear" if shares else "log", range=[-4, 104] if shares else None, zeroline=False,
        exponentformat="none", fixedrange=True,
    )  # fmt: skip


def _laid_out(drawn: go.Figure, curve: Curve, span: tuple[float, float], panels: int) -> None:
    pad = (span[1] - span[0]) * 0.03
    drawn.update_xaxes(
        range=[span[0] - pad, span[1] + pad], gridcolor=GRID, zeroline=False,
        fixedrange=True,
    )  # fmt: skip
    drawn.update_xaxes(row=panels, col=1, title={"text": curve.title, "font": {"size": 13}})
    drawn.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 13, "family": "system-ui, sans-serif"}, hovermode="x unified",
        height=PANEL * panels + 120, margin={"l": 60, "r": 16, "t": 24, "b": 48}, dragmode=False,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip


def table(curve: Curve) -> str:
    """All numbers, for those who cannot see the picture, or want to read them."""
    heads, rows = ratings.swept_rows(curve)
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(_row(cells) for cells in rows)
    return (
        '<div class="sheet numbers" tabindex="0" role="region" aria-label="Numbers of the sweep">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = map(escape, cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{c}</td>" for c in others)}</tr>'


def told(curve: Curve, result: Result) -> str:
    """A result in a few words, by all that it is told by."""
    return " · ".join(ratings.figure(m, m.of(result)) for m in curve.measures())
