"""A split of a prepared folder as samples: sample number to the shard and the slice of it.

Shards are opened at first use, when they are verified, and at most 64 stay mapped. The map costs no memory; the
documents' offsets, the only part that is copied, take about 1 MB a shard.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nezha_ds.batch import IGNORE
from nezha_ds.data.formats import PAIR
from nezha_ds.data.plan import Plan, Progress, load_plan
from nezha_ds.data.settings import DataSettings
from nezha_ds.shards import Columns, Manifest, Split, Verify, open_shard, read_manifest

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
    """B second segments, each (B,): first token, token after the last, and whether it is a random one."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]
    """0 the real next segment, 1 a random one, IGNORE for a sample without text."""


class Dataset:
    """The samples of one split, by their number in the plan."""

    def __init__(self, manifest: Manifest, split: Split, settings: DataSettings, plan: Plan) -> None:
        self.plan = plan
        self._folder = Path(settings.shards)
        self._entries = manifest.of(split)
        self._vocabulary_size = manifest.tokenizer.vocabulary_size
        self._verify: Verify = settings.verify
        self._verified: set[int] = set()
        self.columns = lru_cache(OPEN_SHARDS)(self._open)
        """The columns of a shard by its number in the split, without its sentences. DataError when it is damaged."""

    def slices(self, samples: NDArray[np.int64]) -> Slices:
        """Where samples (B,) lie; PADDING is an empty slice."""
        (records, shards), real = self.plan.read(samples), samples != PADDING

        def column(name: str) -> NDArray[np.int64]:
            return records[name].astype(np.int64) * real

        seconds = None
        if records.dtype == PAIR:
            labels = np.where(real, records["random"].astype(np.int64), IGNORE)
            seconds = Seconds(column("second"), column("second_end"), labels)
        return Slices(shards, column("start"), column("end"), seconds)

    def _open(self, shard: int) -> Columns:
        verify = self._verify if shard not in self._verified else "never"
        columns = open_shard(self._folder, self._entries[shard], self._vocabulary_size, verify)
        self._verified.add(shard)
        # The plan has used the sentences: 10 MB a shard that need not stay.
        return replace(columns, sentences=columns.sentences[:0].copy())


def open_dataset(settings: DataSettings, split: Split, progress: Progress | None = None) -> tuple[Dataset, Manifest]:
    """A split of the prepared folder and its manifest; DataError when the folder, the split or a shard is at fault."""
    folder = Path(settings.shards)
    manifest = read_manifest(folder)
    plan = load_plan(folder, manifest, split, settings, progress)
    return Dataset(manifest, split, settings, plan), manifest
