"""Curves in letters: a chart of braille dots, two by four in a letter, and a line of blocks. No terminal is asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from nezha_ds.pages.curve import Curve, Floats

BLOCKS = "▁▂▃▄▅▆▇█"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille letter by row and column."""
FEWEST_FOLDS = 30.0
"""From so many times the smallest value on, a chart is logarithmic."""


@dataclass(frozen=True)
class Line:
    """A curve and how it looks."""

    curve: Curve
    style: str


def chart(lines: Sequence[Line], width: int, height: int) -> list[Text]:
    """`height` lines of `width` letters and one for the axis below: the curves, with the bounds at their left."""
    lines = [Line(line.curve.finite.thinned(2 * width), line.style) for line in lines]
    lines = [line for line in lines if len(line.curve.x)]
    if not lines:
        return [Text("nothing to draw yet", "dim")]
    y = np.concatenate([line.curve.y for line in lines])
    x = np.concatenate([line.curve.x for line in lines])
    log = bool(y.min() > 0 and y.max() / FEWEST_FOLDS > y.min())
    low, high = _bounds(np.log(y) if log else y)
    names = [brief(math.exp(one) if log else one) for one in (high, (low + high) / 2, low)]
    margin = max(map(len, names)) + 1
    wide = max(8, width - margin)
    grid = _Grid(wide, height)
    for line in lines:
        up = np.log(line.curve.y) if log else line.curve.y
        grid.draw(_share(line.curve.x, float(x.min()), float(x.max())), _share(up, low, high), line.style)
    shown = {0: names[0], (height - 1) // 2: names[1], height - 1: names[2]} if height > 2 else {0: names[0]}
    drawn = [
        Text.assemble((shown.get(row, "").rjust(margin - 1) + " ", "dim"), text) for row, text in enumerate(grid.rows())
    ]
    first, last = f"{x.min():,.0f}", f"{x.max():,.0f}" + (" log" if log else "")
    return [*drawn, Text(" " * margin + first + last.rjust(wide - len(first)), "dim")]


def spark(values: Sequence[float], width: int) -> str:
    """The newest values as one line of blocks, oldest left; of several that share a block the largest; gaps for NaN."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    parts = [values[len(values) * one // width : len(values) * (one + 1) // width] for one in range(width)]
    tops = [max((value for value in part if math.isfinite(value)), default=None) for part in parts if len(part)]
    span = (high - low) or 1.0
    return "".join(" " if top is None else BLOCKS[round(7 * ((top - low) / span))] for top in tops)


def brief(number: float) -> str:
    """A number in at most seven letters."""
    if not math.isfinite(number):
        return str(number)
    if number and not 1e-3 <= abs(number) < 1e5:
        return f"{number:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{number:.4g}"


def _bounds(y: Floats) -> tuple[float, float]:
    low, high = float(y.min()), float(y.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _share(values: Floats, low: float, high: float) -> Floats:
    """From 0 to 1. Halves first: the difference of the largest floats is infinite."""
    span = high / 2 - low / 2
    return np.clip((values / 2 - low / 2) / (span or 1.0), 0, 1)


class _Grid:
    """Letters of dots; a letter has the style of the last curve in it."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._bits = [[0] * width for _ in range(height)]
        self._styles = [[""] * width for _ in range(height)]

    def draw(self, x: Floats, y: Floats, style: str) -> None:
        """A line through points from 0 to 1, y upwards."""
        across = np.rint(x * (2 * self._width - 1)).astype(int).tolist()
        down = np.rint((1 - y) * (4 * self._height - 1)).astype(int).tolist()
        for x0, y0, x1, y1 in zip(across, down, across[1:] or across, down[1:] or down, strict=False):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for step in range(steps + 1):
                self._dot(x0 + round((x1 - x0) * step / steps), y0 + round((y1 - y0) * step / steps), style)

    def rows(self) -> list[Text]:
        """The letters, from the top."""
        rows: list[Text] = []
        for bits, styles in zip(self._bits, self._styles, strict=True):
            row = Text()
            for bit, style in zip(bits, styles, strict=True):
                row.append(chr(0x2800 + bit) if bit else " ", style)
            rows.append(row)
        return rows

    def _dot(self, x: int, y: int, style: str) -> None:
        self._bits[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
        self._styles[y // 4][x // 2] = style
