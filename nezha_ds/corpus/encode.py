"""One task of a preparation: read its pieces, clean, encode, write its shards, and last its receipt.

A task depends on nothing but its `Work`, so any process can do it, at any time, with the same bytes as the result. A
receipt whose work is the same and whose shards verify (2 GB/s) stands for the task. Memory is bounded by the shard
being filled, not by the input: 0.6 GB at most, 0.17 GB for up to 2 GB of text, whose tasks are of 4 to 16 MB. Only a
single line of 32 MB takes more, 1.4 GB.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from nezha_ds.config import Settings
from nezha_ds.corpus.clean import Candidate, Cleaner, CleanSettings
from nezha_ds.corpus.dedup import KEYS, VERDICTS, Survey, document_key
from nezha_ds.corpus.executor import count_bytes
from nezha_ds.corpus.faults import Fault, Faults, OnFault, stop
from nezha_ds.corpus.location import name_of
from nezha_ds.corpus.near import sketches
from nezha_ds.corpus.quality import Quality, Tally
from nezha_ds.corpus.sources import Piece, Reading, Source, read
from nezha_ds.errors import DataError
from nezha_ds.files import sha256_of, write_atomically
from nezha_ds.shards import SHARD_BYTES, Columns, ShardEntry, Split, id_type, pack_words, write_shard
from nezha_ds.text.document import DocumentEncoder, EncodedDocument
from nezha_ds.text.kinds import KINDS, KindName
from nezha_ds.text.segment import make_segmenter
from nezha_ds.text.simplify import make_simplifier
from nezha_ds.text.vocab import Vocabulary

OnError = Literal["stop", "skip"]
"""What broken input does: `stop` ends the preparation at the first, `skip` counts it and goes on."""
SPLITS: tuple[Split, ...] = ("train", "heldout")
RECEIPTS = "receipts"


@dataclass(frozen=True)
class Job:
    """What all tasks of a preparation share."""

    folder: Path
    tokenizer: KindName
    vocabulary: Path | None
    lowercase: bool
    segmenter: str
    user_dictionary: Path | None
    simplify: bool
    clean: CleanSettings
    sketch: int
    """Values of a document's sketch, for near duplicates; 0 for none."""
    measure_one_in: int
    """Of how many documents one is measured for the report."""
    on_error: OnError
    identity: str
    """A hash of everything that the results depend on."""


@dataclass(frozen=True)
class Work:
    """One task: number `number`, the documents of `pieces` but for later copies, exact and near."""

    job: Job
    number: int
    source: Source
    """What the pieces are of; a task never mixes two."""
    pieces: tuple[Piece, ...]
    heldout_below: int = 0
    """Documents with a key under this one are held out."""
    verdicts: bytes = b""
    """For each document that cleaning leaves, its place in VERDICTS; empty when nobody looked for copies."""

    @property
    def size(self) -> int:
        """About how many bytes of text it holds."""
        return sum(piece.size for piece in self.pieces)

    @property
    def receipt(self) -> Path:
        """Where the receipt goes."""
        return self.job.folder / RECEIPTS / f"{self.number:05d}.json"

    @cached_property
    def digest(self) -> str:
        """What the receipt must carry to stand for this work."""
        places = [(name_of(piece.path), piece.start, piece.stop) for piece in self.pieces]
        text = repr((self.job.identity, self.number, self.source.name, places, self.heldout_below, self.verdicts))
        return hashlib.sha256(text.encode()).hexdigest()


class Receipt(Settings):
    """What a finished task leaves."""

    digest: str
    source: str
    """The name of the task's source."""
    shards: tuple[ShardEntry, ...]
    quality: Quality
    """What became of the documents."""
    removed_lines: int
    """Lines removed as boilerplate from the documents that stayed."""
    faults: dict[str, int]
    """Faults passed over, by kind."""
    first_faults: tuple[Fault, ...]
    """The first few of them."""
    lowest: int = KEYS
    """The lowest document key; KEYS without documents."""
    highest: int = -1
    """The highest document key; -1 without documents."""


@lru_cache(maxsize=1)
def _tools(job: Job) -> tuple[Vocabulary, DocumentEncoder]:
    """This process's vocabulary and encoder, made once."""
    kind = KINDS[job.tokenizer]
    vocabulary = kind.load(job.vocabulary)
    segmenter = make_segmenter(job.segmenter, job.user_dictionary)
    return vocabulary, DocumentEncoder(kind.make(vocabulary, job.lowercase), segmenter)


def survey(work: Work) -> Survey:
    """Keys, and sketches if asked for, of the documents that cleaning leaves, in order."""
    keys = array("Q")

    def noted() -> Iterator[str]:
        for text in texts(work, Faults()):
            keys.append(document_key(text))
            yield text

    found = sketches(noted(), work.job.sketch)
    return Survey(np.frombuffer(keys, dtype=np.uint64), found)


def texts(work: Work, faults: Faults) -> Iterator[str]:
    """The task's texts that cleaning leaves, in order; faults are noted where they do not stop."""
    return (candidate.text for candidate in _candidates(work, faults) if candidate.failed is None)


def encode(work: Work) -> Receipt:
    """Do the task, or find it done. DataError names file and line of what is wrong with the input."""
    if (receipt := _finished(work)) is not None:
        count_bytes(work.size)
        return receipt
    receipt = _encode(work)
    write_atomically(work.receipt, receipt.model_dump_json())
    return receipt


def _finished(work: Work) -> Receipt | None:
    """The task's receipt if it is for the same work and its shards are as it says."""
    try:
        receipt = Receipt.model_validate_json(work.receipt.read_bytes())
    except (OSError, ValidationError):
        return None
    whole = receipt.digest == work.digest and all(_verifies(work.job.folder, shard) for shard in receipt.shards)
    return receipt if whole else None


def _verifies(folder: Path, shard: ShardEntry) -> bool:
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256


def _encode(work: Work) -> Receipt:
    vocabulary, encoder = _tools(work.job)
    writers = {split: _ShardWriter(work, split, vocabulary) for split in SPLITS}
    tally, faults = Tally(work.job.measure_one_in), Faults()
    lowest, highest, removed_lines = KEYS, -1, 0
    verdicts = iter(work.verdicts)
    for candidate in _candidates(work, faults):
        key = document_key(candidate.text)
        if reason := candidate.failed or VERDICTS[next(verdicts, 0)]:
            tally.drop(candidate, key, reason)
            continue
        encoded = encoder.encode(candidate.text)
        if not len(encoded.ids):  # nothing but characters that BERT drops
            tally.drop(candidate, key, "empty")
            continue
        tally.keep(candidate, key)
        removed_lines += candidate.removed_lines
        lowest, highest = min(lowest, key), max(highest, key)
        writers["heldout" if key < work.heldout_below else "train"].add(encoded)
    return Receipt(
        digest=work.digest,
        source=work.source.name,
        shards=tuple(entry for writer in writers.values() for entry in writer.close()),
        quality=tally.quality(),
        removed_lines=removed_lines,
        faults=dict(faults.counts),
        first_faults=tuple(faults.first),
        lowest=lowest,
        highest=highest,
    )


def _candidates(work: Work, faults: Faults) -> Iterator[Candidate]:
    """The task's documents, cleaned and judged; faults are noted where they do not stop."""
    job = work.job
    cleaner = Cleaner(job.clean, make_simplifier().convert if job.simplify else None)
    on_fault: OnFault = faults if job.on_error == "skip" else stop
    reading = Reading(work.source.separation, work.source.field, on_fault, count_bytes)
    for document in (document for piece in work.pieces for document in read(piece, reading)):
        try:
            candidate = cleaner(document.text)
        except DataError as error:
            on_fault(document.not_unicode(str(error)))
        else:
            yield candidate


# --------------------------------------------------------------------------------------------------------- the writing


class _ShardWriter:
    """Fills the shards of one task and split, one after another."""

    def __init__(self, work: Work, split: Split, vocabulary: Vocabulary) -> None:
        self._folder, self._name = work.job.folder, f"{split}-{work.number:05d}"
        self._split: Split = split
        self._source = work.source.name
        self._vocabulary = vocabulary
        self._id_type = id_type(len(vocabulary))
        self._waiting: list[EncodedDocument] = []
        self._bytes = 0
        self._entries: list[ShardEntry] = []

    def add(self, document: EncodedDocument) -> None:
        size = document_bytes(document, self._id_type)
        if self._waiting and self._bytes + size > SHARD_BYTES:
            self._write()
        self._waiting.append(document)
        self._bytes += size

    def close(self) -> list[ShardEntry]:
        if self._waiting:
            self._write()
        return self._entries

    def _write(self) -> None:
        name = f"{self._name}-{len(self._entries):03d}.arrow"
        columns = columns_of(self._waiting, self._id_type)
        self._waiting, self._bytes = [], 0
        unknown, size = self._vocabulary.unk_id, len(self._vocabulary)
        self._entries.append(write_shard(self._folder, name, self._split, self._source, columns, unknown, size))


def document_bytes(document: EncodedDocument, id_type: np.dtype[Any]) -> int:
    """What a document takes in a shard: 2 (or 4) bytes and a bit a token, 4 bytes a sentence, 12 for itself."""
    tokens = len(document.ids)
    return tokens * id_type.itemsize + tokens // 8 + 4 * len(document.sentences) + 12


def columns_of(documents: Sequence[EncodedDocument], id_type: np.dtype[Any]) -> Columns:
    """Encoded documents, in order, as a shard's flat columns."""
    starts = np.cumsum([0, *(len(document.ids) for document in documents)], dtype=np.int64)
    shifted = [document.sentences + start for document, start in zip(documents, starts[:-1], strict=True)]
    return Columns(
        tokens=np.concatenate([document.ids for document in documents], dtype=id_type, casting="unsafe"),
        word_bits=pack_words(np.concatenate([document.word_starts for document in documents])),
        documents=starts,
        sentences=np.concatenate(shifted),
    )
