"""Curves over an axis of doublings as one SVG file: a dot for each seed, a line through their means, a cross for each
training that diverged, at the upper edge. In the style of the other study's plot, and like it without a library."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean

from tests.study.plot import STYLE, WIDTH, bounds, digits

LEFT, RIGHT, HEAD, FIELD, FOOT = 70, 40, 64, 240, 52
HEIGHT = HEAD + FIELD + FOOT
"""Of a panel, in pixels."""
ASIDE = 7
"""Pixels by which the curves stand beside each other, so that equal ones are seen."""
COLOURS = ("#c0392b", "#2471a3", "#1e8449")
_STYLE = STYLE + ".curve{fill:none;stroke-width:2}.point{fill-opacity:.6}.cross{stroke-width:2}"

Point = tuple[float, Sequence[float | None]]
"""A place on the horizontal axis, and a number a seed; none where the training diverged."""
Place = Callable[[float], float]


@dataclass(frozen=True)
class Curve:
    """One optimizer."""

    label: str
    colour: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """Some curves over one axis."""

    title: str
    axis: str
    """What the horizontal axis is."""
    curves: Sequence[Curve]


def svg(panels: Sequence[Panel], description: str) -> str:
    """Panels one below the other."""
    parts = [
        f'<g transform="translate(0 {number * HEIGHT})">{"".join(_panel(panel))}</g>'
        for number, panel in enumerate(panels)
    ]
    height = HEIGHT * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}">'
        f"<title>{escape(description)}</title><style>{_STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panel(panel: Panel) -> list[str]:
    points = [point for curve in panel.curves for point in curve.points]
    finite = [value for _, values in points for value in values if value is not None] or [0.0]
    low, high, step = bounds(min(finite), max(finite))
    ticks = sorted({at for at, _ in points})
    # Room on both sides for what stands aside.
    first, last = math.log2(ticks[0]) - 0.3, math.log2(ticks[-1]) + 0.3
    bottom = HEAD + FIELD

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(at) - first) / (last - first)

    def y(value: float) -> float:
        return bottom - FIELD * (value - low) / (high - low)

    parts = [f'<text class="title" x="12" y="24">{escape(panel.title)}</text>']
    for line in range(round((high - low) / step) + 1):
        value = low + line * step
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        label = f"{value:.{digits(step)}f}"
        parts.append(f'<text class="axis" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in ticks:
        parts.append(f'<text class="axis" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:,.6g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(panel.axis)}</text>')
    for number, curve in enumerate(panel.curves):
        aside = ASIDE * (number - (len(panel.curves) - 1) / 2)
        parts += _legend(curve, LEFT + 220 * number)
        parts += _curve(curve, lambda at, aside=aside: x(at) + aside, y, y(high))
    return parts


def _legend(curve: Curve, left: float) -> list[str]:
    return [
        f'<circle class="point" style="fill:{curve.colour}" cx="{left}" cy="44" r="5"/>',
        f'<text x="{left + 12}" y="48">{escape(curve.label)}</text>',
    ]


def _curve(curve: Curve, x: Place, y: Place, top: float) -> list[str]:
    """The means that exist, joined; then the seeds."""
    means = [(x(at), y(mean(known))) for at, values in curve.points if len(known := _known(values)) == len(values)]
    line = " ".join(f"{one:.1f},{other:.1f}" for one, other in means)
    parts = [f'<polyline class="curve" style="stroke:{curve.colour}" points="{line}"/>']
    for at, values in curve.points:
        parts += [
            f'<circle class="point" style="fill:{curve.colour}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="4"/>'
            for value in _known(values)
        ]
        for number in range(len(values) - len(_known(values))):
            left, upper = x(at) - 4, top + 10 * number - 4
            path = f"M{left:.1f} {upper:.1f}l8 8m0 -8l-8 8"
            parts.append(f'<path class="cross" style="stroke:{curve.colour}" d="{path}"/>')
    return parts


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
