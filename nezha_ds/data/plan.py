"""A plan: where every sample of a split lies, for one length and one format.

A sample is a slice of a shard's tokens, or two for a pair, so a plan is 8 bytes a sample, or 20: 0.7 GB for the 10.5
billion tokens of NEZHA as full sentences of length 128. With sentences of 25 tokens, 90% of the places hold tokens at
length 128 and 98% at 512; no token is left out.

Built shard by shard, at 40 to 130M tokens/s with the hash of each, kept as `plans/<key>.npy` beside the shards and
memory-mapped after that. The key covers everything that the plan depends on. Opening reads the counts alone, and the
records of a shard are checked when they are first used: a plan of any size opens at once. A damaged one is built again.
"""

import hashlib
import io
import logging
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nezha_ds.data.formats import FORMATS, ORDERED, Format, Records
from nezha_ds.data.settings import DataSettings
from nezha_ds.errors import DataError, LaunchError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.shards import Manifest, ShardEntry, Split
from nezha_ds.shelf import Shelf, as_shelf

VERSION = 2
"""Part of the key: raise it when the same shards would give other samples, or the file changes."""
UNBALANCED = 0.1
"""How far the share of random pairs may lie from a half, or that of lone sentences from 0, before the log tells."""
Numbers = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with the shards done and the shards in all."""

_log = logging.getLogger(__name__)


class Plan:
    """The samples of a split, shard after shard."""

    def __init__(
        self, records: Records, counts: Numbers, path: Path | None = None, sums: Numbers | None = None
    ) -> None:
        self.records = records
        """(N,) of the format's record, as they lie in the file: `read` is who checks them."""
        self.counts = counts
        """(S,): samples of each shard of the split, in the manifest's order."""
        self._ends = np.cumsum(counts)
        self._path, self._sums = path, sums
        # The shards whose records are known to be sound; without a file, all.
        self._checked = np.full(len(counts), sums is None)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, samples: Numbers) -> tuple[Records, Numbers]:
        """The records of samples (B,), and the shard of each; -1 gives the record of any sample, and shard 0.

        DataError when the file holds something else than what was written; it is removed, so that the next start
        builds it again.
        """
        shards = np.searchsorted(self._ends, samples, side="right")
        if not self._checked[shards].all():
            self.check(np.unique(shards[~self._checked[shards]]).tolist())
        return self.records[samples], shards

    def check(self, shards: Sequence[int]) -> None:
        """DataError when the records of these shards are not what was written; the file is removed then. 2.2 GB/s."""
        for shard in shards:
            assert self._path is not None and self._sums is not None
            part = self.records[self._ends[shard] - self.counts[shard] : self._ends[shard]]
            if zlib.crc32(part.data) != self._sums[shard]:
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)
                raise DataError(
                    f"plan {self._path} is damaged (its checksums differ); start again, and it is built anew, "
                    f"or remove it yourself where {self._path.parent} cannot be written"
                )
            self._checked[shard] = True


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
    record = _format(settings).record
    if not path.exists():
        shelf.bring(name)
        if (brought := _read(path, len(manifest.of(split)), record)) is not None:
            # A copy that is damaged where it comes from would come again at every start: then one is built here.
            with suppress(DataError):
                brought.check(range(len(brought.counts)))
    plan = _read(path, len(manifest.of(split)), record)
    if plan is not None:
        return plan
    parts = _cut_all(shelf, manifest, split, settings, progress)
    try:
        make_folder(path.parent)
        write_atomically(path, *_to_file(parts, record))
    except LaunchError as error:
        _log.warning("the plan is kept in memory and will be built again next time: %s", error)
        return _in_memory(parts)
    return _read(path, len(parts), record) or _in_memory(parts)


def plan_key(manifest: Manifest, split: Split, settings: DataSettings) -> str:
    """The name of a plan's file: a hash of the data and of what the plan makes of it."""
    # What is newer than a key that is in use stands in it only where it is chosen.
    form = settings.format if settings.pairing == "next-sentence" else f"{settings.format}, {settings.pairing}"
    parts = (manifest.fingerprint, split, settings.length, form, settings.short_rate, VERSION)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def build_plan(
    folder: Path | Shelf, manifest: Manifest, split: Split, settings: DataSettings, progress: Progress | None = None
) -> Plan:
    """Cut every shard of the split into samples, in memory; DataError for a damaged shard."""
    return _in_memory(_cut_all(as_shelf(folder), manifest, split, settings, progress))


def _in_memory(parts: Sequence[Records]) -> Plan:
    return Plan(np.concatenate(parts), np.array([len(part) for part in parts], np.int64))


def _cut_all(
    shelf: Shelf, manifest: Manifest, split: Split, settings: DataSettings, progress: Progress | None
) -> list[Records]:
    """The records of every shard."""
    entries = manifest.of(split)
    parts: list[Records] = []
    for entry in entries:
        parts.append(_cut(shelf, entry, len(parts), manifest.tokenizer.vocabulary_size, settings))
        if progress:
            progress(len(parts), len(entries))
    if settings.pairs:
        _warn_of_pairs(parts, settings, f"{shelf.folder} ({split})")
    return parts


def _warn_of_pairs(parts: Sequence[Records], settings: DataSettings, where: str) -> None:
    """Tell when the pairs ask little: labels out of balance, or many samples that are no pair."""
    samples = sum(map(len, parts))
    random = sum(int(np.count_nonzero(part["random"])) for part in parts) / samples
    alone = sum(int(np.count_nonzero(part["second"] == part["second_end"])) for part in parts) / samples
    if settings.pairing == "next-sentence" and abs(random - 0.5) > UNBALANCED:
        _log.warning(
            "%.0f%% of the pairs of %s have a random second segment, as most documents have one sentence; "
            "take data.format=doc-sentences and objective.nsp=0",
            100 * random,
            where,
        )
    if alone > UNBALANCED:
        _log.warning(
            "%.0f%% of the samples of %s are a sentence alone, of whose order nothing can be asked; "
            "take data.format=segment-pair, or doc-sentences and objective.sop=0",
            100 * alone,
            where,
        )


def _format(settings: DataSettings) -> Format:
    return (ORDERED if settings.pairing == "sentence-order" else FORMATS)[settings.format]


def _cut(shelf: Shelf, entry: ShardEntry, number: int, vocabulary_size: int, settings: DataSettings) -> Records:
    columns = shelf.open_shard(entry, vocabulary_size, settings.verify)
    try:
        return _format(settings).cut(columns, settings.length, settings.short_rate, number)
    except DataError as error:
        raise DataError(f"shard {shelf.folder / entry.name} {error}") from None


def _empty(folder: Path, split: Split) -> str:
    if split == "heldout":
        return f"{folder} has no held-out documents; prepare again with a larger held-out share, or do not evaluate"
    return f"{folder} has no documents to train on; prepare again with more text or a smaller held-out share"


# ------------------------------------------------------------------------------------------------------------- the file
#
# A row with the count of shards and the CRC-32 of the rows that follow; one row for each shard, with its count of
# samples and the CRC-32 of its records; then the records of all shards.


def _to_file(parts: Sequence[Records], record: np.dtype[np.void]) -> list[bytes | memoryview]:
    """What the file is to hold, piece by piece, so that no second plan has to be in memory."""
    shards, first = np.zeros(len(parts), record), np.zeros(1, record)
    shards["start"], shards["end"] = [len(part) for part in parts], [zlib.crc32(part.data) for part in parts]
    first["start"], first["end"] = len(parts), zlib.crc32(shards.data)
    rows = 1 + len(parts) + sum(map(len, parts))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(record), "fortran_order": False, "shape": (rows,)}
    )
    return [header.getvalue(), *(part.view(np.uint8).data for part in (first, shards, *parts))]


def _read(path: Path, shards: int, record: np.dtype[np.void]) -> Plan | None:
    """The plan in a file, or None when there is none or it is damaged; the records are not looked at yet."""
    try:
        # np.load would also open archives, and offers to unpickle.
        rows: Records = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        return None
    except Exception as error:
        # A damaged header makes numpy raise a dozen kinds of error, and one cure fits all.
        _log.warning("plan %s is damaged (%s); building it again", path, error)
        return None
    if rows.dtype == record and rows.ndim == 1 and len(rows) > shards and rows["start"][0] == shards:
        head, records = rows[1 : 1 + shards], rows[1 + shards :]
        counts = head["start"].astype(np.int64)
        if zlib.crc32(head.data) == rows["end"][0] and counts.sum() == len(records):
            return Plan(records, counts, path, head["end"].astype(np.int64))
    _log.warning("plan %s is damaged (its checksums differ); building it again", path)
    return None
