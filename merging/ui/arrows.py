"""Two models as arrows, and the merged one between them: how it turns and how long it stays.

It draws what `stepwise` finds, as a picture in SVG.
"""

from collections.abc import Iterator, Sequence
from math import atan2, cos, degrees, dist, hypot, pi, radians, sin

from merging.plane import Arrows
from merging.stepwise import View
from merging.ui import look

LENGTH = 270
"""Of the longest arrow, in the picture's units."""
LEAST = 50
"""Degrees at which two arrows can be told apart; nearer ones are drawn wider, and said to be."""
ROOM = 46
"""About the arrows, for what is written at their tips."""
NEAR = 60
"""Between two tips at which their labels would cover each other."""
LABELS = (("a", "A"), ("b", "B"), ("merged", "Merged"))

HOW = {
    "spherical": "spherical: along the arc",
    "LERP": "LERP: so near one line that the chord is as good as the arc",
}
"""What is said of a method's outcome."""
ON_A_LINE = (
    "A and B lie as good as on one line, or one of them is 0, so that there is no arc between them:"
)

Point = tuple[float, float]


def drawn(view: View) -> str:
    """Picture and sentences; nothing where the merged model is not in its models' plane."""
    if view.arrows is None:
        told = f"<p>{ON_A_LINE} <b>{view.outcome}</b>.</p>" if view.outcome else ""
        return f'<figure class="arrows"><figcaption>{told}</figcaption></figure>' if told else ""
    wider = max(1.0, radians(LEAST) / view.arrows.angle)
    lines = [*_told(view, view.arrows)]
    if wider > 1:
        lines.append(f"The angle is drawn {wider:.1f} times as wide, to be seen; lengths are true.")
    return (
        f'<figure class="arrows">{_picture(view.arrows, wider)}'
        f"<figcaption>{''.join(f'<p>{line}</p>' for line in lines)}</figcaption></figure>"
    )


def _told(view: View, arrows: Arrows) -> Iterator[str]:
    a, b, merged = view.lengths
    angle = f"<b>{degrees(arrows.angle):.2f}°</b> (cosine {view.cosine:.5f})"
    yield f"The angle between A and B is {angle}."
    share = view.step.values.get(arrows.along)
    if share is not None:
        how = HOW.get(view.outcome or "")
        yield f"<b>{arrows.along} = {share:g}</b>{f' · {how}' if how else ''}"
    yield f"Lengths: A {a:#.4g}, B {b:#.4g}, merged <b>{merged:#.4g}</b>."
    if view.outcome == "spherical":
        straight = _straight(arrows, float(view.step.values[arrows.along]))
        yield f"The straight line between them, dashed, would give {straight:#.4g}."


def _straight(arrows: Arrows, share: float) -> float:
    """How long the point of the chord is that divides it so."""
    (ax, ay), (bx, by), _ = arrows.tips
    return hypot(ax + (bx - ax) * share, ay + (by - ay) * share)


def _picture(arrows: Arrows, wider: float) -> str:
    """The fan stands upright: A to its left, turned to the right by each angle."""
    longest = max(hypot(*p) for p in (*arrows.tips, *arrows.way)) or 1.0

    def place(point: Point) -> Point:
        turned = pi / 2 + wider * (arrows.angle / 2 - atan2(point[1], point[0]))
        length = LENGTH * hypot(*point) / longest
        return length * cos(turned), -length * sin(turned)

    tips = [place(tip) for tip in arrows.tips]
    chord = _line([place(point) for point in _between(arrows.tips[0], arrows.tips[1])], "chord")
    way = _line([place(point) for point in arrows.way], "arc")
    covered = any(dist(tips[2], tip) < NEAR for tip in tips[:2])
    raised = (0, 0, 26 if covered else 0)
    arrowed = zip(tips, raised, LABELS, strict=True)
    labels = "".join(_arrow(tip, up, *own) for tip, up, own in arrowed)
    xs, ys = zip(*tips, (0.0, 0.0), strict=True)
    left, top = min(*xs, -150) - ROOM - 40, min(ys) - ROOM - max(raised)
    box = f"{left:.0f} {top:.0f} {max(*xs, 150) + ROOM + 40 - left:.0f} {max(ys) + 14 - top:.0f}"
    heads = "".join(
        f'<marker id="head-{slot}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="5" '
        f'markerHeight="5" orient="auto"><path class="tip {slot}" d="M0 0 10 5 0 10z"/></marker>'
        for slot, _ in LABELS
    )
    return (
        f'<svg viewBox="{box}" role="img" aria-label="A, B and the merged model as arrows">'
        f"<defs>{heads}</defs>{chord}{way}{labels}</svg>"
    )


def _between(a: Point, b: Point, pieces: int = 24) -> list[Point]:
    """A straight line in pieces: drawn wider it is none."""
    shares = [n / pieces for n in range(pieces + 1)]
    return [(a[0] + (b[0] - a[0]) * s, a[1] + (b[1] - a[1]) * s) for s in shares]


def _line(points: Sequence[Point], kind: str) -> str:
    if not points:
        return ""
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _arrow(tip: Point, up: int, slot: str, name: str) -> str:
    x, y = tip
    length = hypot(x, y) or 1.0
    out_x, out_y = x * (1 + 24 / length), y * (1 + 24 / length) + 6 - up
    anchor = "end" if x < -12 else "start" if x > 12 else "middle"
    return (
        f'<g class="arrow {slot}"><line x1="0" y1="0" x2="{x:.1f}" y2="{y:.1f}" '
        f'marker-end="url(#head-{slot})"/><text x="{out_x:.1f}" y="{out_y:.1f}" '
        f'text-anchor="{anchor}">{look.MARKS[slot]} {name}</text></g>'
    )
