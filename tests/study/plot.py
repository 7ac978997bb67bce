"""A plot of the study as one SVG file: a dot for each seed, a line through their mean, an axis for each measure.

By hand, in a hundred lines: no library to install, the same bytes from the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean

from nezha_ds.pages.charts import scale

WIDTH, LEFT, RIGHT = 860, 270, 40
ROW, HEAD, FOOT = 22, 44, 40
"""Heights of an arm's row, of what is above the first one and below the last one."""
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:14px}"
    ".axis{fill:#666;font-size:11px}.grid{stroke:#ddd}.mean{stroke:#222;stroke-width:2}.dot{fill:#c0392b;fill-opacity:.6}"
)


@dataclass(frozen=True)
class Panel:
    """One measure of some arms."""

    title: str
    rows: Sequence[tuple[str, Sequence[float]]]
    """Labels, and a number a seed."""

    @property
    def height(self) -> int:
        """In pixels."""
        return HEAD + ROW * len(self.rows) + FOOT


def svg(panels: Sequence[Panel], description: str) -> str:
    """Panels one below the other."""
    parts: list[str] = []
    top = 0
    for panel in panels:
        parts.append(f'<g transform="translate(0 {top})">{"".join(_panel(panel))}</g>')
        top += panel.height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{WIDTH}" height="{top}" '
        f'viewBox="0 0 {WIDTH} {top}">'
        f"<title>{escape(description)}</title><style>{STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panel(panel: Panel) -> list[str]:
    numbers = [number for _, row in panel.rows for number in row]
    low, high, step = bounds(min(numbers), max(numbers))
    bottom = HEAD + ROW * len(panel.rows)

    def place(value: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low):.1f}"

    parts = [f'<text class="title" x="12" y="24">{escape(panel.title)}</text>']
    for line in range(round((high - low) / step) + 1):
        x, value = place(low + line * step), low + line * step
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{HEAD - 8}" y2="{bottom}"/>')
        label = f"{value:.{digits(step)}f}"
        parts.append(f'<text class="axis" x="{x}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for number, (label, row) in enumerate(panel.rows):
        y = HEAD + ROW * number + ROW // 2
        parts.append(f'<text x="{LEFT - 12}" y="{y}" text-anchor="end">{escape(label)}</text>')
        parts += [f'<circle class="dot" cx="{place(value)}" cy="{y - 4}" r="5"/>' for value in row]
        middle = place(mean(row))
        parts.append(f'<line class="mean" x1="{middle}" x2="{middle}" y1="{y - 12}" y2="{y + 4}"/>')
    return parts


def bounds(least: float, most: float) -> tuple[float, float, float]:
    """Ends of an axis that holds both, and the step of its lines; it need not begin at 0."""
    _, step = scale(max(most - least, 1e-3 * max(abs(most), 1e-3)))
    return step * math.floor(least / step), step * (math.floor(most / step) + 1), step


def digits(step: float) -> int:
    """Behind the point, for numbers that are `step` apart."""
    return max(0, math.ceil(-math.log10(step) - 1e-9))
