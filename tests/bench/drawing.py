"""Draws memory over time as an SVG, with a table beneath; knows no app and no clients."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDE, HIGH, LEFT, TOP, ROW = 900, 260, 70, 50, 24
"""Pixels: of the curve, of what stands beside and above it, of a row of the table."""
STYLE = """text { font: 14px system-ui, sans-serif; fill: #0f172a } .mute { fill: #5b6475 }
.number { text-anchor: end } .grid { stroke: #e3e7ee } .curve { fill: none; stroke: #2563eb;
stroke-width: 2 }"""

Curve = Sequence[tuple[float, float]]
"""Seconds and megabytes."""


def steps(highest: float, most: int = 6) -> list[float]:
    """Round numbers from 0 on, the last of which is the first that is not below the highest."""
    size = 1.0
    while highest / size > most:
        size *= 2.5 if str(size).startswith("2") else 2
    return [size * n for n in range(int(-(-highest // size)) + 1)]


def drawing(title: str, curve: Curve, table: Sequence[Sequence[object]]) -> str:
    """The whole picture; the table's first row are its heads."""
    seconds, sizes = steps(curve[-1][0]), steps(1.05 * max(size for _, size in curve))
    right, down = WIDE / seconds[-1], HIGH / sizes[-1]
    line = " ".join(f"{LEFT + right * at:.1f},{TOP + HIGH - down * mb:.1f}" for at, mb in curve)
    parts = [f'<text x="{LEFT}" y="28">{escape(title)}</text>']
    for mb in sizes:
        y = TOP + HIGH - down * mb
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDE}"/>')
        parts.append(f'<text class="mute number" x="{LEFT - 8}" y="{y + 5:.1f}">{mb:.0f} MB</text>')
    for at in seconds:
        x = LEFT + right * at
        parts.append(f'<text class="mute number" x="{x}" y="{TOP + HIGH + 22}">{at:.0f} s</text>')
    parts.append(f'<polyline class="curve" points="{line}"/>')
    for number, row in enumerate(table):
        y, width = TOP + HIGH + 60 + ROW * number, WIDE / len(row)
        kind = "number" if number else "mute number"
        for n, cell in enumerate(row):
            x = LEFT + width * (n + 1)
            parts.append(f'<text class="{kind}" x="{x:.0f}" y="{y}">{escape(str(cell))}</text>')
    high = TOP + HIGH + 60 + ROW * len(table)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDE + 30} {high}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
