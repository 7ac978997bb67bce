"""Bar charts as inline SVG, in fifty lines of geometry: no library, no script, no fixed width.

Horizontal places are per cent of whatever width the page gives, vertical ones and the type are pixels; so bars stretch
with the page and letters keep their size on a phone. Axis labels lie outside the drawing, in room that the page's
`.plot` leaves around it. Colours come from the page's style, by the classes `bar`, `grid`, `axis` and a series' own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

HEIGHT = 168
"""Of the bars' field, in pixels."""
_MOST_LABELS = 7
"""Labels of a horizontal axis that find room at a width of 280 pixels."""


@dataclass(frozen=True)
class Series:
    """One colour of bars."""

    name: str
    """A class of the page's style."""
    heights: Sequence[float]
    """(n,): of the bars, 1 being 100%."""
    hints: Sequence[str]
    """(n,): what each bar tells when it is pointed at."""


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of n bars."""

    name: str
    bounds: Sequence[float]
    """(n + 1,): where each bar begins, and where the last one ends, in a unit of the axis' own."""
    labels: Sequence[tuple[float, str]]
    """Places in the same unit, and what is written there."""

    def place(self, value: float) -> float:
        """In per cent of the width."""
        return 100 * (value - self.bounds[0]) / (self.bounds[-1] - self.bounds[0])


def log_axis(name: str, bounds: Sequence[int]) -> Axis:
    """Each doubling equally wide; labels at powers of two, at every second or third of them if there are many."""
    powers = [bound for bound in bounds if bound & (bound - 1) == 0]
    every = math.ceil(len(powers) / _MOST_LABELS)
    return Axis(name, [math.log2(bound) for bound in bounds], [(math.log2(one), f"{one:,}") for one in powers[::every]])


def named_axis(name: str, names: Sequence[str]) -> Axis:
    """Bars of equal width with a label under the middle of each."""
    return Axis(name, range(len(names) + 1), [(place + 0.5, label) for place, label in enumerate(names)])


def bar_chart(title: str, description: str, series: Sequence[Series], axis: Axis, y_axis: str) -> str:
    """A chart with the series' bars side by side."""
    top, step = scale(max(max(one.heights) for one in series))
    parts = [f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"]
    for line in range(round(top / step) + 1):
        y = HEIGHT - HEIGHT * line * step / top
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="axis" x="-8" y="{y + 4:.1f}" text-anchor="end">{_percent(line * step, step)}</text>'
        )
    for place, one in enumerate(series):
        parts += _bars(one, axis, top, place / len(series), (place + 1) / len(series))
    for value, label in axis.labels:
        x, y = axis.place(value), HEIGHT + 17
        parts.append(f'<text class="axis" x="{x:.2f}%" y="{y}" text-anchor="middle">{escape(label)}</text>')
    parts.append(
        f'<text class="axis" x="50%" y="{HEIGHT + 37}" text-anchor="middle">{escape(axis.name)}</text>'
        f'<text class="axis" x="-38" y="-12">{escape(y_axis)}</text>'
    )
    return f'<div class="plot"><svg role="img" width="100%" height="{HEIGHT}">{"".join(parts)}</svg></div>'


def _bars(series: Series, axis: Axis, top: float, start: float, end: float) -> list[str]:
    """The bars of one series, from `start` to `end` of each bin; where there is anything, a pixel at least."""
    parts: list[str] = []
    for (left, right), height, hint in zip(pairwise(axis.bounds), series.heights, series.hints, strict=True):
        if height > 0:
            pixels = max(1.0, HEIGHT * height / top)
            first, width = axis.place(left), axis.place(right) - axis.place(left)
            # Of each bin, 5% on either side is air.
            x, wide = first + width * (0.05 + 0.9 * start), 0.9 * width * (end - start)
            parts.append(
                f'<rect class="bar {series.name}" x="{x:.2f}%" y="{HEIGHT - pixels:.1f}" width="{wide:.2f}%" '
                f'height="{pixels:.1f}"><title>{escape(hint)}</title></rect>'
            )
    return parts


def scale(most: float) -> tuple[float, float]:
    """The top of an axis from 0 that holds `most`, and the step of its three to five lines: 1, 2 or 5 times 10^n."""
    size = 10.0 ** math.floor(math.log10(most))
    step = next(size * factor for factor in (0.2, 0.5, 1, 2) if most <= 5 * size * factor)
    return step * math.ceil(most / step - 1e-9), step


def _percent(share: float, step: float) -> str:
    return f"{100 * share:.{max(0, math.ceil(-math.log10(100 * step) - 1e-9))}f}%"
