"""A sweep and a comparison as people and programs read them: Markdown tables and plain values.

It knows results, no models; what those are called is said by whoever asks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from merging.exam import RIGHT, Measure, Result, measures
from merging.fair import PARENT, Row
from merging.knobs import Knob
from merging.sweep import Scored, best


@dataclass(frozen=True)
class Curve:
    """A sweep so far: the parents' results by name, and the merge's by the knob's value.

    `called` has the parents' names as people read them.
    """

    knob: Knob
    called: Mapping[str, str]
    parents: Mapping[str, Result] = field(default_factory=dict)
    points: Mapping[float, Result] = field(default_factory=dict)

    def scored(self, new: Scored) -> "Curve":
        """With one more result."""
        if new.value is None:
            return replace(self, parents={**self.parents, new.who: new.result})
        return replace(self, points={**self.points, new.value: new.result})

    @property
    def title(self) -> str:
        """What is turned."""
        own = self.knob.model
        return f"{self.knob.name} of {self.called.get(own, own)}" if own else self.knob.name

    def measures(self) -> list[Measure]:
        """What each result is told by; nothing before the parents' are there."""
        return (
            measures(self.parents, self.called) if self.parents.keys() == self.called.keys() else []
        )

    def best(self) -> float | None:
        """The value with the best result."""
        return best(self.points) if self.points else None


def swept(curve: Curve) -> dict[str, Any]:
    """A sweep for programs: one score a measure, in their order, None where there is none."""
    told = curve.measures()
    return {
        "parameter": curve.knob.name,
        "model": curve.knob.model,
        "measures": [{"label": m.label, "unit": m.unit} for m in told],
        "parents": {name: _scores(told, result) for name, result in curve.parents.items()},
        "values": [{"value": v, "scores": _scores(told, r)} for v, r in curve.points.items()],
        "best": curve.best(),
    }


def swept_rows(curve: Curve) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a sweep's table: the parents, then each value, the best one marked."""
    told = curve.measures()
    rows = [[curve.called[n], *_cells(told, r)] for n, r in curve.parents.items() if told]
    for value, result in curve.points.items():
        mark = " (best)" if value == curve.best() else ""
        rows.append([f"{value:g}{mark}", *_cells(told, result)])
    return [curve.title, *_heads(told)], rows


def compared(rows: Sequence[Row], called: Mapping[str, str]) -> dict[str, Any]:
    """A comparison for programs."""
    told = _measures(rows, called)
    return {
        "measures": [{"label": m.label, "unit": m.unit} for m in told],
        "rows": [
            {
                "kind": row.kind, "title": row.title, "parameters": dict(row.parameters),
                "length": row.length, "own": _scores(told, row.own),
                "matched": _scores(told, row.matched), "problem": row.problem,
            }
            for row in rows
        ],
    }  # fmt: skip


def compared_table(rows: Sequence[Row], called: Mapping[str, str]) -> str:
    """A comparison as a Markdown table: scores at each model's own length, then at length 1."""
    told = _measures(rows, called)
    heads = [*_heads(told)]
    lines = []
    for row in rows:
        title = called.get(row.title, row.title)
        if row.problem:
            lines.append([title, row.problem, *[""] * (2 * len(told))])
            continue
        cells = [*_cells(told, row.own), *_cells(told, row.matched)]
        lines.append([title, f"{row.length:.2f}", *cells])
    return table(["merge", "length", *heads, *(f"{head}, length 1" for head in heads)], lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns after the first to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines)


def _measures(rows: Sequence[Row], called: Mapping[str, str]) -> list[Measure]:
    known = {row.title: row.own for row in rows if row.kind == PARENT and row.own}
    return measures(known, called) if known else []


def _heads(told: Sequence[Measure]) -> Iterator[str]:
    return (f"{m.label}, {'%' if m.unit == RIGHT else m.unit}" for m in told)


def _scores(told: Sequence[Measure], result: Result | None) -> list[float | None] | None:
    return [m.of(result) for m in told] if result else None


def _cells(told: Sequence[Measure], result: Result | None) -> Iterator[str]:
    return (figure(m, m.of(result) if result else None) for m in told)


def figure(measure: Measure, score: float | None) -> str:
    """A score as people read it."""
    if score is None:
        return "–"
    return f"{score:.0f}" if measure.unit == RIGHT else f"{score:,.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
