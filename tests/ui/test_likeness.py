"""What is drawn of an answer looked into, without a page: labels, curves, gaps and their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from merging.nexttoken import Distance, NextTokens
from merging.ui import charts
from merging.ui.likeness import bars, curve, strip

NONE = (None, 0.34)
"""Nats and missing mass where nothing can be compared."""


def seen(
    distances: Mapping[str, Sequence[float | tuple[float | None, float]]], position: int = 0
) -> NextTokens:
    """An answer of as many tokens; what is missing is nothing where only nats are given."""
    along = {
        slot: tuple(Distance(*(d if isinstance(d, tuple) else (d, 0.0))) for d in each)
        for slot, each in distances.items()
    }
    tokens = tuple(f" t{n}" for n in range(max(map(len, along.values()))))
    choices = dict.fromkeys([*along, "merged"], ())
    return NextTokens("merged", position, tokens, tokens[position], choices, along, {})


@pytest.mark.parametrize(
    ("at", "label"),
    [
        ({"a": 0.2, "b": 0.4}, "A"),
        ({"a": 0.4, "b": 0.35}, "all"),
        ({"a": 0.4, "b": 0.9, "c": 0.35}, "A and C"),
        ({"a": 1.2, "b": 3.0}, "neither"),
        ({"a": 1.0, "b": 3.0}, "A"),
        ({"a": 0.2}, "A"),
        ({"a": NONE, "b": 0.9}, "B"),
        ({"a": NONE, "b": NONE}, "not comparable"),
        ({"a": 0.9, "b": 1.5, "base": 0.1, "pinned": 0.0}, "A"),
    ],
)
def test_whom_a_token_is_like(at: Mapping[str, float], label: str) -> None:
    """The nearest parent, and all that are hardly farther; others than parents do not count."""
    assert strip(seen({slot: [each] for slot, each in at.items()})) == [(" t0", label)]


def test_a_line_a_parent() -> None:
    """Each in its own colour over all tokens, whoever else could be compared; the mark and the
    chosen token are shown, and the scale reaches all."""
    found = seen({"c": [0.1, 0.5, 4.0], "a": [2.0, 0.0, 0.3], "base": [9.0] * 3}, 1)
    picture = curve(found)
    assert picture is not None
    lines = [line for line in picture.figure.data if line.mode == "lines+markers"]
    assert [line.name for line in lines] == ["◆ A", "▲ C"]
    assert [[*line.y] for line in lines] == [[2.0, 0.0, 0.3], [0.1, 0.5, 4.0]]
    assert all([*line.x] == [1, 2, 3] for line in lines)
    assert [line.line.color for line in lines] == [charts.COLOURS[0], charts.COLOURS[2]]
    marks = [(line.x0, line.y0) for line in picture.figure.layout.shapes]
    assert marks == [(0, 1.0), (2, 0)]
    assert picture.figure.layout.yaxis.range[1] > 4
    assert "◆ A 0.77 nats on average, 2.00 at most" in picture.facts
    assert not any(y for line in picture.figure.data if line not in lines for y in line.y)
    assert "lacks" not in picture.facts and "compar" not in picture.facts + picture.look_for
    after = curve(seen({"a": [0.1]}, 0))
    assert after is not None and after.figure.layout.yaxis.range[1] > 1  # the mark can be seen


def test_gaps_where_nothing_can_be_compared() -> None:
    """The line breaks, a cross stands beneath, and the missing mass is told there and in words."""
    picture = curve(seen({"a": [0.1, NONE, 0.2], "b": [0.3, NONE, (0.5, 0.02)]}))
    assert picture is not None
    a, a_gaps, b, b_gaps = picture.figure.data
    assert [*a.y] == [0.1, None, 0.2] and not a.connectgaps
    for gaps in (a_gaps, b_gaps):
        assert [y is None for y in gaps.y] == [True, False, True]
        assert 0 > gaps.y[1] > picture.figure.layout.yaxis.range[0]
        assert gaps.text[1] == "“␣t1”<br>not comparable<br>34% on tokens that the other lacks"
    assert a_gaps.y[1] != b_gaps.y[1]
    assert b.text[2] == "“␣t2”<br>0.50 nats from merged<br>2% on tokens that the other lacks"
    assert a.text[0] == "“␣t0”<br>0.10 nats from merged"
    assert "not comparable at 1 of 3 tokens, up to 34% on tokens" in picture.facts
    assert "a cross stands" in picture.look_for


def test_a_parent_that_can_never_be_compared() -> None:
    """It has crosses alone; where no parent could read, or nothing, there is no picture."""
    picture = curve(seen({"a": [NONE, NONE], "b": [0.1, 0.2]}))
    assert picture is not None
    assert [line.name for line in picture.figure.data if line.showlegend] == ["◆ A", "● B"]
    assert [y is None for y in picture.figure.data[0].y] == [True, True]
    assert "◆ A not comparable at 2 of 2 tokens, up to 34%" in picture.facts
    assert curve(seen({"base": [0.1]})) is None
    assert curve(NextTokens("merged", 0, (), None, {}, {"a": ()}, {})) is None


def test_what_a_text_says_is_text() -> None:
    """Nothing that a model says is read as markup by what draws it."""
    found = NextTokens("merged", 0, ("<b>",), "<b>", {}, {"a": (Distance(0.1, 0.0),)}, {})
    picture = curve(found)
    assert picture is not None
    assert "&lt;b&gt;" in picture.figure.data[0].text[0]
    assert [*picture.figure.layout.xaxis.ticktext] == ["&lt;b&gt;"]


@pytest.mark.parametrize("count", [3, 200])
def test_what_stands_beneath(count: int) -> None:
    """A short answer's tokens by name; of a long one at most six numbers."""
    picture = curve(seen({"a": [0.1] * count}))
    assert picture is not None
    axis = picture.figure.layout.xaxis
    if count == 3:
        assert [*axis.ticktext] == ["␣t0", "␣t1", "␣t2"]
    else:
        assert axis.ticktext is None and count / axis.dtick <= 6


def test_distances_stand_above_the_bars() -> None:
    """At the chosen token, with what is missing."""
    shown = bars(seen({"a": [0.1, 0.25], "b": [0.1, NONE]}, 1))
    assert "0.25 nats from merged" in shown
    assert "not comparable · 34% on tokens that the other lacks" in shown
