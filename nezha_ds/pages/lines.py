"""Line charts as inline SVG: as charts.py has it, across in per cent and upwards in pixels, so letters keep their size.

The lines lie in a drawing of their own that is stretched with the page; their strokes are not. A chart of any number of
points has 4 in each of 150 parts at most, the smallest and the largest among them: 7 kB. Where a value was NaN or
infinite the line is broken and a mark stands at the upper edge. lines.js reads values off, by pointer or by arrow keys.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from nezha_ds.pages.charts import HEIGHT
from nezha_ds.pages.curve import Curve, Floats

SCRIPT = Path(__file__).with_name("lines.js")
PARTS = 150
"""Across; with four points in each a line has more than one in a pixel."""
ACROSS = 1000
"""Width of the drawing in units of its own."""
FARTHEST = 1e300
"""From 0 that anything is drawn: the difference of two such numbers is still one."""
MARKS = 200
"""Places where a line is broken that are marked at most."""


@dataclass(frozen=True)
class Trace:
    """One line."""

    name: str
    style: str
    """Classes of the page's style: `s0` to `s7` are colours; `held` has dots, `faint` is light."""
    curve: Curve
    band: tuple[Floats, Floats] | None = None
    """(n,), (n,): around the curve's points, drawn as an area."""


@dataclass(frozen=True)
class Frame:
    """The axes of a chart."""

    x_name: str
    y_name: str
    log: bool = False
    """Whether upwards each factor is equally high; what is not above 0 is then left out."""
    percent: bool = False
    """Whether upwards 1 is 100%."""


def line_chart(title: str, traces: Sequence[Trace], frame: Frame) -> str:
    """A chart of all traces in one frame; words in its place where there is nothing that can be drawn."""
    traces = [one for one in traces if len(one.curve.x)]
    drawn = [Trace(one.name, one.style, _drawable(one, frame), None) for one in traces]
    every = [one.curve for one in drawn if len(one.curve.x)]
    if not every:
        return '<p class="soft">No number that could be drawn.</p>'
    x = _reach([one.x for one in every] + [one.curve.broken for one in traces], False)
    y = _reach(
        [one.y for one in every] + [_positive(edge, frame.log) for one in traces for edge in one.band or ()], frame.log
    )
    parts = [*_across(x, frame.x_name), *_upwards(y, frame)]
    inner = "".join(_line(one, thin, x, y, frame.log) for one, thin in zip(traces, drawn, strict=True))
    parts.append(
        f'<svg class="inner" width="100%" height="{HEIGHT}" viewBox="0 0 {ACROSS} {HEIGHT}" '
        f'preserveAspectRatio="none">{inner}</svg>'
    )
    for one, thin in zip(traces, drawn, strict=True):
        parts += _dots(one, thin.curve, x, y, frame.log)
        parts += _breaks(one, x, frame.x_name)
    data = f'data-x="{x[0]!r},{x[1]!r}" data-y="{y[0]!r},{y[1]!r}" data-name="{escape(frame.x_name)}"'
    flags = f"{' data-log' if frame.log else ''}{' data-percent' if frame.percent else ''}"
    return (
        f'<div class="plot lines"><svg role="img" tabindex="0" aria-label="{escape(title)}" width="100%" '
        f'height="{HEIGHT}" {data}{flags}>{"".join(parts)}</svg></div>'
    )


def told(number: float, percent: bool = False) -> str:
    """A number on an axis or in a table, in seven letters or so."""
    if not math.isfinite(number):
        return {math.inf: "∞", -math.inf: "-∞"}.get(number, "NaN")
    if percent:
        return f"{100 * number:.3g}%"
    size = abs(number)
    for unit, least in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if least <= size < 1e15:
            return f"{number / (1e3 if unit == 'k' else least):.4g}{unit}"
    return (
        f"{number:.4g}" if not size or 1e-3 <= size < 1e4 else f"{number:.3g}".replace("e-0", "e-").replace("e+", "e")
    )


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Three to seven round numbers from `low` to `high`."""
    if log and high / low >= 10:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        every = math.ceil((last - first + 1) / 6)
        tens = [10.0**power for power in range(first, last + 1, every)]
        between = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
        return (
            tens if len(tens) > 2 else [one for one in between if low <= one * (1 + 1e-9) and one <= high * (1 + 1e-9)]
        )
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if rough <= size * factor * (1 + 1e-9))
    return [one * step for one in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _drawable(one: Trace, frame: Frame) -> Curve:
    curve = Curve(one.curve.finite.x, one.curve.finite.y.clip(-FARTHEST, FARTHEST))
    if frame.log:
        curve = Curve(curve.x[curve.y > 0], curve.y[curve.y > 0])
    return curve.thinned(PARTS)


def _positive(values: Floats, log: bool) -> Floats:
    values = values[np.isfinite(values)]
    return values[values > 0] if log else values


def _reach(values: Sequence[Floats], log: bool) -> tuple[float, float]:
    """From the smallest to the largest, apart also where there is one only, and never too far apart to subtract."""
    joined = np.concatenate(values).clip(-FARTHEST, FARTHEST)
    low, high = float(joined.min()), float(joined.max())
    if high - low <= abs(high) * 1e-9:
        return (low / 2, high * 2) if log else (low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5))
    return low, high


def _share(values: Floats, reach: tuple[float, float], log: bool = False) -> Floats:
    """From 0 to 1."""
    low, high = (math.log(one) for one in reach) if log else reach
    values = np.log(values) if log else values
    return ((values - low) / (high - low)).clip(0, 1)


def _across(reach: tuple[float, float], name: str) -> Iterator[str]:
    for tick in ticks(*reach):
        place = 100 * float(_share(np.array(tick), reach))
        yield f'<text class="axis" x="{place:.2f}%" y="{HEIGHT + 17}" text-anchor="middle">{told(tick)}</text>'
    yield f'<text class="axis" x="50%" y="{HEIGHT + 37}" text-anchor="middle">{escape(name)}</text>'


def _upwards(reach: tuple[float, float], frame: Frame) -> Iterator[str]:
    for tick in ticks(*reach, frame.log):
        y = HEIGHT * (1 - float(_share(np.array(tick), reach, frame.log)))
        yield f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="axis" x="-8" y="{y + 4:.1f}" text-anchor="end">{told(tick, frame.percent)}</text>'
    name = ", ".join(filter(None, [frame.y_name, "log" if frame.log else ""]))
    yield f'<text class="axis" x="-38" y="-12">{escape(name)}</text>'


def _line(one: Trace, thin: Trace, x: tuple[float, float], y: tuple[float, float], log: bool) -> str:
    curve = thin.curve
    across, down = ACROSS * _share(curve.x, x), HEIGHT * (1 - _share(curve.y, y, log))
    # A line goes through no point that is no number: it begins again behind it.
    begins = np.diff(np.searchsorted(np.sort(one.curve.broken), curve.x), prepend=-1) != 0
    path = "".join(
        f"{'M' if begin else ' '}{left:.1f},{top:.2f}"
        for begin, left, top in zip(begins.tolist(), across.tolist(), down.tolist(), strict=True)
    )
    # A stretch of a single point is a line to itself, whose round ends show.
    path = "M".join(
        stretch if " " in stretch else f"{stretch} {stretch}" if stretch else "" for stretch in path.split("M")
    )
    name = escape(one.name)
    return f'{_band(one, x, y, log)}<path class="line {one.style}" data-name="{name}" d="{path}"/>'


def _band(one: Trace, x: tuple[float, float], y: tuple[float, float], log: bool) -> str:
    if one.band is None:
        return ""
    least = y[0] if log else -math.inf
    lower, upper = (Curve(one.curve.x, np.maximum(edge, least)).finite.thinned(PARTS) for edge in one.band)
    points = [
        f"{left:.1f},{top:.1f}"
        for edge in (Curve(upper.x, upper.y), Curve(lower.x[::-1], lower.y[::-1]))
        for left, top in zip(ACROSS * _share(edge.x, x), HEIGHT * (1 - _share(edge.y, y, log)), strict=True)
    ]
    return f'<path class="band {one.style}" d="M{" ".join(points)}Z"/>' if points else ""


def _dots(one: Trace, curve: Curve, x: tuple[float, float], y: tuple[float, float], log: bool) -> Iterator[str]:
    """Of a line that is marked so and has few enough points to tell them apart."""
    if "held" in one.style and len(curve.x) <= 60:
        for left, down in zip(100 * _share(curve.x, x), HEIGHT * (1 - _share(curve.y, y, log)), strict=True):
            yield f'<circle class="dot {one.style}" cx="{left:.2f}%" cy="{down:.1f}" r="2.5"/>'


def _breaks(one: Trace, x: tuple[float, float], name: str) -> Iterator[str]:
    broken = one.curve.broken
    places, firsts = np.unique(np.rint(ACROSS * _share(broken, x)), return_index=True)
    every = math.ceil(len(places) / MARKS) or 1
    for place, where in zip((places[::every] / 10).tolist(), broken[firsts[::every]].tolist(), strict=True):
        yield (
            f'<line class="lost" x1="{place:.1f}%" x2="{place:.1f}%" y1="-3" y2="9">'
            f"<title>{escape(one.name)}: NaN or infinite at {told(where)} {escape(name)}</title></line>"
        )
