"""A split of a prepared folder as samples: sample number to the shard and the slice of it.

Shards are opened at first use, when they are verified, and 64 or a few more stay mapped. The map costs no memory; the
documents' offsets, the only part that is copied, take about 1 MB a shard. Shards behind a URI come through the node's
cache (`shelf.py`), and fewer stay mapped where its limit is low.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nezha_ds.batch import IGNORE
from nezha_ds.data.formats import PAIR
from nezha_ds.data.order import WINDOW
from nezha_ds.data.plan import Plan, Progress, load_plan
from nezha_ds.data.settings import DataSettings
from nezha_ds.errors import ConfigError
from nezha_ds.shards import Columns, Manifest, Split, Verify, read_manifest
from nezha_ds.shelf import Shelf, open_shelf

PADDING = -1
"""The number of a sample without text, which fills up the last batches of an evaluation."""
OPEN_SHARDS = 64
"""Several windows of the order, so that no shard is opened twice in an epoch."""


@dataclass(frozen=True)
class Slices:
    """B samples as slices of shards, each (B,): shard, first token, token after the last."""

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    seconds: "Seconds | None" = None
    """The second segments of the same shards, if the samples are pairs."""


@dataclass(frozen=True)
class Seconds:
    """B second segments, each (B,): first token, token after the last, and what stands there."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]
    """0 the real next segment; 1 a random one, or the swapped one before it; IGNORE where there is none."""


class Samples(Protocol):
    """Samples by their numbers, of one prepared folder or of several."""

    sources: tuple[str, ...]
    """The names of the texts that they come from."""
    owners: NDArray[np.int64]
    """(S,): which source each shard is of."""

    @property
    def columns(self) -> Callable[[int], Columns]:
        """The columns of a shard by its number. DataError when it is damaged."""
        ...

    def slices(self, samples: NDArray[np.int64]) -> Slices:
        """Where samples (B,) lie."""
        ...


class Dataset:
    """The samples of one split, by their number in the plan."""

    def __init__(
        self, manifest: Manifest, split: Split, settings: DataSettings, plan: Plan, shelf: Shelf | None = None
    ) -> None:
        self.plan = plan
        self.shelf = shelf or Shelf(Path(settings.shards))
        self._entries = manifest.of(split)
        self._vocabulary_size = manifest.tokenizer.vocabulary_size
        self._verify: Verify = settings.verify
        self._verified: set[int] = set()
        self.sources = tuple(source.name for source in manifest.sources)
        numbers = {name: number for number, name in enumerate(self.sources)}
        self.owners = np.array([numbers[entry.source] for entry in self._entries], np.int64)
        self.columns = lru_cache(shards_to_open(manifest, split, self.shelf.limit))(self._open)
        """The columns of a shard by its number in the split, without its sentences. DataError when it is damaged."""

    def slices(self, samples: NDArray[np.int64]) -> Slices:
        """Where samples (B,) lie; PADDING is an empty slice."""
        (records, shards), real = self.plan.read(samples), samples != PADDING

        def column(name: str) -> NDArray[np.int64]:
            return records[name].astype(np.int64) * real

        seconds = None
        if records.dtype == PAIR:
            there = real & (records["second_end"] > records["second"])
            labels = np.where(there, records["random"].astype(np.int64), IGNORE)
            seconds = Seconds(column("second"), column("second_end"), labels)
        return Slices(shards, column("start"), column("end"), seconds)

    def expect(self, shards: Sequence[int]) -> None:
        """Which shards come next, the most urgent first: those that are not on this machine are fetched."""
        self.shelf.expect([self._entries[shard] for shard in shards])

    def close(self) -> None:
        """Let go of all shards, and fetch no more."""
        self.columns.cache_clear()
        self.shelf.close()

    def _open(self, shard: int) -> Columns:
        verify = self._verify if shard not in self._verified else "never"
        columns = self.shelf.open_shard(self._entries[shard], self._vocabulary_size, verify)
        self._verified.add(shard)
        # The plan has used the sentences: 10 MB a shard that need not stay.
        return replace(columns, sentences=columns.sentences[:0].copy())


def shards_to_open(manifest: Manifest, split: Split, limit: int | None) -> int:
    """How many shards may stay mapped when the node keeps `limit` bytes of them, or all for None.

    ConfigError when the limit is below two windows of the order: the one that is read and the one that is fetched.
    """
    # Each source that has a weight has a window of its own.
    window = WINDOW * max(1, sum(source.weight > 0 for source in manifest.sources))
    sizes = sorted((entry.bytes for entry in manifest.of(split)), reverse=True)
    needed = sum(sizes[: 2 * window])
    if limit is None or limit >= sum(sizes):
        return max(OPEN_SHARDS, 2 * window)
    if limit < needed:
        raise ConfigError(
            f"data.cache_limit = {limit / 1e9:g} GB is too little: two times {window} shards are in use at once; set "
            f"data.cache_limit={math.ceil(needed / 1e8) / 10:g} or more"
        )
    return min(max(OPEN_SHARDS, 2 * window), max(window, limit // sizes[0] - window))


def shelf_of(settings: DataSettings) -> Shelf:
    """Where the prepared text lies; DataError when it is behind a URI and cannot be had."""
    return open_shelf(settings.shards, settings.cache, int(settings.cache_limit * 1e9))


def open_dataset(settings: DataSettings, split: Split, progress: Progress | None = None) -> tuple[Dataset, Manifest]:
    """A split of the prepared folder and its manifest; DataError when the folder, the split or a shard is at fault."""
    shelf = shelf_of(settings)
    manifest = read_manifest(shelf.folder)
    plan = load_plan(shelf, manifest, split, settings, progress)
    return Dataset(manifest, split, settings, plan, shelf), manifest
