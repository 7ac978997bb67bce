"""A plan: where every sample of a split lies, for one length and one format.

A sample is a slice of a shard's tokens, or two for a pair, so a plan is 8 bytes a sample, or 20: 0.7 GB for the 10.5
billion tokens of NEZHA as full sentences of length 128. With sentences of 25 tokens, 90% of the places hold tokens at
length 128 and 98% at 512; no token is left out.

Built shard by shard, kept as `plans/<key>.npy` beside the shards, memory-mapped after that.
The key covers everything that the plan depends on; a damaged file is built again.
"""

import hashlib
import io
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nezha_ds.data.formats import FORMATS, Records
from nezha_ds.data.settings import DataSettings
from nezha_ds.errors import DataError, LaunchError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.shards import Manifest, ShardEntry, Split
from nezha_ds.shelf import Shelf, as_shelf

VERSION = 1
"""Part of the key: raise it when the same shards would give other samples."""
UNBALANCED = 0.1
"""How far the share of random pairs may lie from a half before the log tells."""
Progress = Callable[[int, int], None]
"""Called with the shards done and the shards in all."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The samples of a split, shard after shard."""

    records: Records
    """(N,) of the format's record."""
    counts: NDArray[np.int64]
    """(S,): samples of each shard of the split, in the manifest's order."""

    def __len__(self) -> int:
        return len(self.records)


def load_plan(
    folder: Path | Shelf, manifest: Manifest, split: Split, settings: DataSettings, progress: Progress | None = None
) -> Plan:
    """The plan from its file, or built and written there; in memory where the folder cannot be written.

    DataError when the split is empty or a shard is damaged. `progress` is called only when there is something to build.
    """
    shelf = as_shelf(folder)
    if not manifest.of(split):
        raise DataError(_empty(shelf.folder, split))
    name = f"plans/{plan_key(manifest, split, settings)}.npy"
    path = shelf.folder / name
    if not path.exists():
        shelf.bring(name)
    record = FORMATS[settings.format].record
    plan = _read(path, len(manifest.of(split)), record)
    if plan is not None:
        return plan
    plan = build_plan(shelf, manifest, split, settings, progress)
    try:
        make_folder(path.parent)
        write_atomically(path, _to_bytes(plan))
    except LaunchError as error:
        _log.warning("the plan is kept in memory and will be built again next time: %s", error)
        return plan
    return _read(path, len(plan.counts), record) or plan


def plan_key(manifest: Manifest, split: Split, settings: DataSettings) -> str:
    """The name of a plan's file: a hash of the data and of what the plan makes of it."""
    parts = (manifest.fingerprint, split, settings.length, settings.format, settings.short_rate, VERSION)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def build_plan(
    folder: Path | Shelf, manifest: Manifest, split: Split, settings: DataSettings, progress: Progress | None = None
) -> Plan:
    """Cut every shard of the split into samples; DataError for a damaged shard."""
    shelf, entries = as_shelf(folder), manifest.of(split)
    parts: list[Records] = []
    for entry in entries:
        parts.append(_cut(shelf, entry, len(parts), manifest.tokenizer.vocabulary_size, settings))
        if progress:
            progress(len(parts), len(entries))
    plan = Plan(np.concatenate(parts), np.array([len(part) for part in parts], np.int64))
    if settings.pairs and abs(plan.records["random"].mean() - 0.5) > UNBALANCED:
        _log.warning(
            "%.0f%% of the pairs of %s (%s) have a random second segment, as most documents have one sentence; "
            "take data.format=doc-sentences and objective.nsp=0",
            100 * plan.records["random"].mean(),
            shelf.folder,
            split,
        )
    return plan


def _cut(shelf: Shelf, entry: ShardEntry, number: int, vocabulary_size: int, settings: DataSettings) -> Records:
    columns = shelf.open_shard(entry, vocabulary_size, settings.verify)
    try:
        return FORMATS[settings.format].cut(columns, settings.length, settings.short_rate, number)
    except DataError as error:
        raise DataError(f"shard {shelf.folder / entry.name} {error}") from None


def _empty(folder: Path, split: Split) -> str:
    if split == "heldout":
        return f"{folder} has no held-out documents; prepare again with a larger held-out share, or do not evaluate"
    return f"{folder} has no documents to train on; prepare again with more text or a smaller held-out share"


# ------------------------------------------------------------------------------------------------------------- the file
#
# One row for each shard (its count of samples, the CRC-32 of its records), then the records of all shards.


def _to_bytes(plan: Plan) -> memoryview:
    head = np.zeros(len(plan.counts), plan.records.dtype)
    head["start"], head["end"] = plan.counts, _checksums(plan.records, plan.counts)
    file = io.BytesIO()
    np.save(file, np.concatenate([head, plan.records]))
    return file.getbuffer()


def _read(path: Path, shards: int, record: np.dtype[np.void]) -> Plan | None:
    """The plan in a file, or None when there is none or it is damaged."""
    try:
        rows: Records = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except Exception as error:
        # A damaged header makes numpy raise a dozen kinds of error, and one cure fits all.
        _log.warning("plan %s is damaged (%s); building it again", path, error)
        return None
    if rows.dtype == record and rows.ndim == 1 and len(rows) >= shards:
        plan = Plan(rows[shards:], rows["start"][:shards].astype(np.int64))
        if plan.counts.sum() == len(plan) and _checksums(plan.records, plan.counts) == rows["end"][:shards].tolist():
            return plan
    _log.warning("plan %s is damaged (its checksums differ); building it again", path)
    return None


def _checksums(records: Records, counts: NDArray[np.int64]) -> list[int]:
    ends = np.cumsum(counts)
    return [
        zlib.crc32(records[start:end].data) for start, end in zip((ends - counts).tolist(), ends.tolist(), strict=True)
    ]
