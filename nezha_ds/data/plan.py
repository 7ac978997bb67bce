"""A plan: where every sample of a split lies, for one length and one format.

Full-sentences (RoBERTa, arXiv 1907.11692, section 4.2): a sample is a run of whole sentences of one shard, packed
greedily up to the length, across documents with a [SEP] between them. So it is a slice of the shard's tokens, and a
plan is 8 bytes a sample: 0.7 GB for the 10.5 billion tokens of NEZHA at length 128. With sentences of 25 tokens, 90% of
the places hold tokens at length 128 and 98% at 512; no token is left out.

Built shard by shard (120M tokens/s), kept as `plans/<key>.npy` beside the shards, memory-mapped after that.
The key covers everything that the plan depends on; a damaged file is built again.
"""

import hashlib
import io
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nezha_ds.data.settings import DataSettings
from nezha_ds.errors import DataError, LaunchError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.shards import Columns, Manifest, Offsets, Split, open_shard

VERSION = 1
"""Part of the key: raise it when the same shards would give other samples."""
LOOK_BACK = 8
"""Tokens by which a cut moves back to a word start: longer than nearly any word, 6% of a sample of 128."""

RECORD = np.dtype([("start", "<u4"), ("end", "<u4")])
"""A sample: its first token, and the token after its last, counted from its shard's start."""
Records = NDArray[np.void]
Progress = Callable[[int, int], None]
"""Called with the shards done and the shards in all."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The samples of a split, shard after shard."""

    records: Records
    """(N,) of RECORD."""
    counts: NDArray[np.int64]
    """(S,): samples of each shard of the split, in the manifest's order."""

    def __len__(self) -> int:
        return len(self.records)


def load_plan(
    folder: Path, manifest: Manifest, split: Split, settings: DataSettings, progress: Progress | None = None
) -> Plan:
    """The plan from its file, or built and written there; in memory where the folder cannot be written.

    DataError when the split is empty or a shard is damaged. `progress` is called only when there is something to build.
    """
    if not manifest.of(split):
        raise DataError(_empty(folder, split))
    path = folder / "plans" / f"{plan_key(manifest, split, settings)}.npy"
    plan = _read(path, shards=len(manifest.of(split)))
    if plan is not None:
        return plan
    plan = build_plan(folder, manifest, split, settings, progress)
    try:
        make_folder(path.parent)
        write_atomically(path, _to_bytes(plan))
    except LaunchError as error:
        _log.warning("the plan is kept in memory and will be built again next time: %s", error)
        return plan
    return _read(path, shards=len(plan.counts)) or plan


def plan_key(manifest: Manifest, split: Split, settings: DataSettings) -> str:
    """The name of a plan's file: a hash of the data and of what the plan makes of it."""
    parts = (manifest.fingerprint, split, settings.length, settings.format, VERSION)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def build_plan(
    folder: Path, manifest: Manifest, split: Split, settings: DataSettings, progress: Progress | None = None
) -> Plan:
    """Cut every shard of the split into samples; DataError for a damaged shard."""
    cut, entries = FORMATS[settings.format], manifest.of(split)
    parts: list[Records] = []
    for entry in entries:
        columns = open_shard(folder, entry, manifest.tokenizer.vocabulary_size, settings.verify)
        parts.append(cut(columns, settings.length))
        if progress:
            progress(len(parts), len(entries))
    return Plan(np.concatenate(parts), np.array([len(part) for part in parts], np.int64))


def _empty(folder: Path, split: Split) -> str:
    if split == "heldout":
        return f"{folder} has no held-out documents; prepare again with a larger held-out share, or do not evaluate"
    return f"{folder} has no documents to train on; prepare again with more text or a smaller held-out share"


# ------------------------------------------------------------------------------------------------------------- the file
#
# One row for each shard (its count of samples, the CRC-32 of its records), then the records of all shards.


def _to_bytes(plan: Plan) -> memoryview:
    head = np.empty(len(plan.counts), RECORD)
    head["start"], head["end"] = plan.counts, _checksums(plan.records, plan.counts)
    file = io.BytesIO()
    np.save(file, np.concatenate([head, plan.records]))
    return file.getbuffer()


def _read(path: Path, shards: int) -> Plan | None:
    """The plan in a file, or None when there is none or it is damaged."""
    try:
        rows: Records = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except Exception as error:
        # A damaged header makes numpy raise a dozen kinds of error, and one cure fits all.
        _log.warning("plan %s is damaged (%s); building it again", path, error)
        return None
    if rows.dtype == RECORD and rows.ndim == 1 and len(rows) >= shards:
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


# ---------------------------------------------------------------------------------------------------------- the formats


def full_sentences(columns: Columns, length: int) -> Records:
    """The samples of one shard, in order: each takes the sentences that follow while they fit.

    Where each sample would end is one binary search for all sentences at once; then the chain of samples is followed.
    """
    capacity = length - 2
    starts = _pieces(columns, capacity)
    bounds = np.append(starts, len(columns.tokens))
    # Count a [SEP] before each document: then distances are what a sample has to hold.
    firsts, lasts = _with_separators(columns, starts), _with_separators(columns, bounds[1:] - 1)
    following = np.searchsorted(lasts, firsts + capacity, side="left")
    chain = np.array(_follow(following.tolist()), np.int64)
    records = np.empty(len(chain), RECORD)
    records["start"], records["end"] = starts[chain], bounds[following[chain]]
    return records


FORMATS: dict[str, Callable[[Columns, int], Records]] = {"full-sentences": full_sentences}


def _with_separators(columns: Columns, tokens: Offsets) -> Offsets:
    return tokens + np.searchsorted(columns.documents, tokens, side="right")


def _follow(following: Sequence[int]) -> list[int]:
    chain: list[int] = []
    at = 0
    while at < len(following):
        chain.append(at)
        at = following[at]
    return chain


def _pieces(columns: Columns, capacity: int) -> Offsets:
    """(S or more,): where sentences begin, and where those that no sample can hold are cut."""
    ends = np.append(columns.sentences[1:], len(columns.tokens))
    long = np.flatnonzero(ends - columns.sentences > capacity)
    cuts = [
        cut
        for start, end in zip(columns.sentences[long].tolist(), ends[long].tolist(), strict=True)
        for cut in _cuts(columns, start, end, capacity)
    ]
    return np.sort(np.concatenate([columns.sentences, np.array(cuts, np.int64)])) if cuts else columns.sentences


def _cuts(columns: Columns, start: int, end: int, capacity: int) -> list[int]:
    """Where a long sentence is cut: at a word start, so that no sample begins or ends with half a word, unless the
    last `LOOK_BACK` tokens have none.
    """
    cuts: list[int] = []
    while end - start > capacity:
        near = np.arange(start + capacity, start + capacity - LOOK_BACK, -1)
        start = int(near[columns.word_starts(near).argmax()])
        cuts.append(start)
    return cuts
