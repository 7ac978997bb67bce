"""Curves of a run as columns of numbers: eight bytes a number, so that a million records fit.

Columns share their rows. A number that a row lacks is ABSENT, which is not NaN: a loss that exploded is shown, one that
was never measured is not.
"""

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from sys import float_info

import numpy as np

from nezha_ds.pages.curve import Curve

ABSENT = -float_info.max


class Columns:
    """Rows at rising steps, each with the same kind of numbers."""

    def __init__(self) -> None:
        self.steps = array("d")
        self.tokens = array("d")
        """Real tokens that led to the step."""
        self.seconds = array("d")
        """Time that was spent until then; what a crash threw away is not in it."""
        self.columns: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, tokens: float, seconds: float, numbers: Mapping[str, float | None]) -> None:
        """A row; None is ABSENT."""
        for name, number in numbers.items():
            if number is not None and name not in self.columns:
                self.columns[name] = array("d", [ABSENT]) * len(self.steps)
        for name, column in self.columns.items():
            number = numbers.get(name)
            column.append(ABSENT if number is None else number)
        self.steps.append(step)
        self.tokens.append(tokens)
        self.seconds.append(seconds)

    def cut(self, step: int) -> None:
        """Forget the rows beyond a step, which a restart undid."""
        keep = bisect_right(self.steps, step)
        for column in (self.steps, self.tokens, self.seconds, *self.columns.values()):
            del column[keep:]

    def curve(self, name: str, over: str = "steps") -> Curve:
        """A column over `steps`, `tokens` or `seconds`; without points where there is no such column."""
        y = np.array(self.columns.get(name, ()), np.float64)
        keep = y != ABSENT
        x = np.array(getattr(self, over), np.float64)
        return Curve(x[keep], y[keep]) if len(y) else Curve(y, y)

    def total(self, name: str) -> float:
        """The sum of a column's finite numbers."""
        return float(self.curve(name).finite.y.sum())

    def last(self, name: str) -> float | None:
        """The newest number of a column."""
        column = self.columns.get(name)
        return column[-1] if column and column[-1] != ABSENT else None
