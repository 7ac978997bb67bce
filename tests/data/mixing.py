"""How random the order looks, as numbers: correlations, shards mixed, and where samples come.

    python -m tests.data.mixing          # 1,000 shards of 2,000 samples each, in about half a minute

Only the shards of a window are read at a time, so samples that come one after another lie in the same 8 shards: over a
whole corpus their numbers correlate by about 1 / 8, which is the price of reading 8 files and not 1,000. Within a
window they must not correlate at all.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nezha_ds.data.order import WINDOW, Order

LAGS = (1, 2, 3, 8, 32, 128)


@dataclass(frozen=True)
class Mixing:
    """One corpus under one seed. A correlation by chance deviates from 0 by 1 / sqrt(samples)."""

    samples: int
    spearman: float
    """Rank correlation of place and sample number over an epoch."""
    epochs: float
    """Rank correlation of the places that a sample has in two epochs."""
    lags: dict[int, float]
    """Correlation of the sample numbers of places so far apart, by distance."""
    lags_in_window: dict[int, float]
    """The same of what is left when each window's mean is taken away."""
    shards_in_batch: tuple[int, float, int]
    """Shards among the samples of a batch: fewest, mean, most."""
    share_of_shard: float
    """The largest share of a batch that is of one shard; 1 / 8 and a little if windows are mixed well."""
    turns: tuple[float, int]
    """Chi-square, and its degrees of freedom, of the windows in which each shard comes, over many epochs."""
    places: tuple[float, int]
    """The same of where in 20 parts of its window each sample comes."""


def measure(shards: int, samples: int, batch: int, seed: int = 1, epochs: int = 50) -> Mixing:
    """Measure a corpus of `shards` shards with `samples` samples each, in batches of `batch`."""
    counts = np.full(shards, samples)
    order, whole = Order(counts, seed), shards * samples
    first, second = order.sample(np.arange(whole)), order.sample(np.arange(whole) + whole)
    window = np.arange(whole) // (WINDOW * samples)
    means = np.bincount(window, first) / np.bincount(window)
    owner = (first // samples)[: whole // batch * batch].reshape(-1, batch)
    distinct = np.array([len(np.unique(row)) for row in owner])
    largest = max(np.bincount(row).max() for row in owner) / batch
    return Mixing(
        samples=whole,
        # Both are permutations of 0 .. N - 1, so numbers are ranks.
        spearman=correlation(first, np.arange(whole)),
        epochs=correlation(np.argsort(first), np.argsort(second)),
        lags={lag: correlation(first[lag:], first[:-lag]) for lag in LAGS},
        lags_in_window={lag: correlation((left := first - means[window])[lag:], left[:-lag]) for lag in LAGS},
        shards_in_batch=(int(distinct.min()), float(distinct.mean()), int(distinct.max())),
        share_of_shard=float(largest),
        turns=chi_square(_turns(order, shards, samples, epochs)),
        places=chi_square(_places(seed, samples, epochs)),
    )


def correlation(a: NDArray[np.int64] | NDArray[np.float64], b: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """Pearson's; of ranks it is Spearman's."""
    return float(np.corrcoef(a, b)[0, 1])


def chi_square(found: NDArray[np.int64]) -> tuple[float, int]:
    """Of counts (rows, bins) against equal ones; the sums of rows are given, and those of bins if there are rows."""
    rows, bins = found.shape
    expected = found.sum(axis=1, keepdims=True) / bins
    return float(np.sum((found - expected) ** 2 / expected)), max(1, rows - 1) * (bins - 1)


def _turns(order: Order, shards: int, samples: int, epochs: int) -> NDArray[np.int64]:
    """(shards, windows): in how many epochs each shard came in each window."""
    found = np.zeros((shards, shards // WINDOW), np.int64)
    # 500 samples of a window show all 8 shards of it.
    places = np.arange(0, shards * samples, max(1, samples // 64))
    for epoch in range(epochs):
        owners = order.sample(places + epoch * shards * samples) // samples
        pairs = np.unique(owners * len(found[0]) + places // (WINDOW * samples))
        found.reshape(-1)[pairs] += 1
    return found


def _places(seed: int, samples: int, epochs: int, bins: int = 20) -> NDArray[np.int64]:
    """(WINDOW x samples, bins): in how many epochs each sample of a window came in each part of it."""
    size = WINDOW * samples
    order = Order(np.full(WINDOW, samples), seed)
    found = np.zeros((size, bins), np.int64)
    for epoch in range(epochs):
        found[order.sample(np.arange(size) + epoch * size), np.arange(size) * bins // size] += 1
    return found


if __name__ == "__main__":
    for name, value in vars(measure(1000, 2000, 8192)).items():
        print(f"{name:<16} {value}")
