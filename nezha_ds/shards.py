"""The only door to pyarrow: what a shard is, how one is written, and how it is read without copying.

A shard is an Arrow IPC file of one record batch, about 64 MB, read by memory map. A row is a document:

    tokens     list<uint16 | uint32>   ids, without special tokens; 32 bits beyond 65,536 entries
    words      list<bool>              one bit a token: a word begins here
    sentences  list<uint32>            where sentences begin, counted in tokens from the document's start

One batch a file keeps each column in one piece, so a shard is four flat arrays (`Columns`) and a sample is a slice of
them: 2.2 bytes a token, no object per document. `manifest.json` names everything that the ids depend on; its
own hash is the fingerprint of the data, and stands in it too. Shards know nothing of sequence lengths or objectives.
"""

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from nezha_ds.config import Settings
from nezha_ds.errors import DataError
from nezha_ds.files import sha256_of, write_atomically

FORMAT = 2
MANIFEST = "manifest.json"
SHARD_BYTES = 64 << 20
"""The size at which a writer closes a shard."""

Ids = NDArray[np.uint16 | np.uint32]
Offsets = NDArray[np.int64]
Split = Literal["train", "heldout"]
Verify = Literal["hashes", "sizes", "never"]


@dataclass(frozen=True)
class Columns:
    """Documents as flat arrays: T tokens, D documents, S sentences. Indices count tokens from the shard's start."""

    tokens: Ids
    """(T,)"""
    word_bits: NDArray[np.uint8]
    """(ceil(T / 8),): bit `t & 7` of byte `t >> 3` says whether a word begins at token t."""
    documents: Offsets
    """(D + 1,): where documents begin, and T."""
    sentences: Offsets
    """(S,): where sentences begin, ascending; every document begins with one."""

    def word_starts(self, index: Offsets) -> NDArray[np.bool_]:
        """Whether a word begins at each token index, in the index's own shape."""
        return (self.word_bits[index >> 3] >> (index & 7).astype(np.uint8)) & 1 != 0


def pack_words(word_starts: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(T,) flags to the bit layout that `Columns` and Arrow share."""
    return np.packbits(word_starts, bitorder="little")


def unpack_words(columns: Columns) -> NDArray[np.bool_]:
    """(T,) flags of a whole shard."""
    return np.unpackbits(columns.word_bits, count=len(columns.tokens), bitorder="little").astype(np.bool_)


def join(parts: Iterable[Columns]) -> Columns:
    """One set of columns with the documents of all parts in order."""
    pieces = list(parts)
    if not pieces:
        raise DataError("a shard needs at least one document; the input has none")
    starts = np.cumsum([0, *(len(part.tokens) for part in pieces)], dtype=np.int64)
    return Columns(
        tokens=np.concatenate([part.tokens for part in pieces]),
        word_bits=pack_words(np.concatenate([unpack_words(part) for part in pieces])),
        documents=np.concatenate(
            [
                *(part.documents[:-1] + start for part, start in zip(pieces, starts[:-1], strict=True)),
                starts[-1:],
            ]
        ),
        sentences=np.concatenate([part.sentences + start for part, start in zip(pieces, starts[:-1], strict=True)]),
    )


def id_type(vocabulary_size: int) -> np.dtype[Any]:
    """The narrowest type that holds every id: 16 bits up to 65,536 entries, whose last id is 65,535."""
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


# --------------------------------------------------------------------------------------------------------- the manifest


class ShardEntry(Settings):
    """One shard as the manifest lists it."""

    name: str
    split: Split
    source: str
    """The name of the source that all its documents are of."""
    documents: int
    sentences: int
    words: int
    tokens: int
    unknowns: int
    bytes: int
    sha256: str


class TokenizerEntry(Settings):
    """What turns text into ids."""

    kind: str
    """`bert-wordpiece` or `byte-bpe`."""
    lowercase: bool
    vocabulary_size: int
    vocabulary_sha256: str


class SegmenterEntry(Settings):
    """What finds words."""

    name: str
    version: str
    dictionary_sha256: str


class SourceEntry(Settings):
    """One of the texts that a corpus is made of."""

    name: str
    weight: int
    """Its share of the samples, beside the weights of the others; 0 for what its length makes it."""
    inputs: tuple[str, ...]


class Manifest(Settings):
    """Everything that the contents of a prepared folder depend on."""

    format: int
    tokenizer: TokenizerEntry
    segmenter: SegmenterEntry
    normalisation: str
    """Name and version of the normalisation, such as `plain/1` or, simplified, `plain/1 opencc/1.4.2/t2s`."""
    heldout: float
    """The share of documents set apart for evaluation, chosen by a hash of each document's text."""
    sources: tuple[SourceEntry, ...]
    shards: tuple[ShardEntry, ...]

    @property
    def fingerprint(self) -> str:
        """The data's identity: checkpoints carry it, plans are cached under it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def of(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def total(self, count: Literal["documents", "sentences", "words", "tokens", "unknowns", "bytes"]) -> int:
        """The sum of one count over all shards."""
        return sum(getattr(shard, count) for shard in self.shards)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, last and at once: a folder that has one is complete."""
    tree = {"fingerprint": manifest.fingerprint, **json.loads(manifest.model_dump_json())}
    write_atomically(folder / MANIFEST, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


class _Stored(Manifest):
    """`manifest.json`: the manifest, and the hash that it had when it was written."""

    written: str = Field(default="", alias="fingerprint")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder; DataError when the folder is not one, of a later format, or was changed."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError:
        raise DataError(
            f"{folder} has no {MANIFEST}: not a prepared folder, or its preparation did not finish; "
            f"run `nezha-ds prepare INPUT --out {folder}`"
        ) from None
    return parse_manifest(data, folder / MANIFEST)


def parse_manifest(data: bytes, path: str | Path) -> Manifest:
    """The manifest that was read from `path`; DataError when it is damaged, of a later format, or was changed."""
    try:
        stored = _Stored.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{path} is damaged ({'.'.join(map(str, first['loc'])) or 'not JSON'}: {first['msg']}); copy it again, or "
            "delete it and prepare again"
        ) from None
    manifest = Manifest.model_construct(**{name: getattr(stored, name) for name in Manifest.model_fields})
    if manifest.format != FORMAT:
        raise DataError(f"{path} has format {manifest.format}, this version reads {FORMAT}; prepare again or update")
    for entry in manifest.shards:
        if Path(entry.name).name != entry.name or entry.name in ("", ".."):
            raise DataError(f"{path} names a shard outside its folder: {entry.name!r}; do not use this data")
    if stored.written != manifest.fingerprint:
        raise DataError(
            f"{path} was changed after it was written (it is not what its fingerprint says); copy it again, or delete "
            "it and prepare again"
        )
    return manifest


# -------------------------------------------------------------------------------------------------------------- writing


def write_shard(
    folder: Path, name: str, split: Split, source: str, columns: Columns, unknown_id: int, vocabulary_size: int
) -> ShardEntry:
    """Write one shard under a temporary name, sync it, rename it into place, and return its manifest entry."""
    data = _to_ipc(columns, pa.from_numpy_dtype(id_type(vocabulary_size)))
    write_atomically(folder / name, data)
    return ShardEntry(
        name=name,
        split=split,
        source=source,
        documents=len(columns.documents) - 1,
        sentences=len(columns.sentences),
        words=int(np.bitwise_count(columns.word_bits).sum()),
        tokens=len(columns.tokens),
        unknowns=int(np.count_nonzero(columns.tokens == unknown_id)),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _to_ipc(columns: Columns, id_type: pa.DataType) -> memoryview:
    tokens, count = len(columns.tokens), len(columns.documents) - 1
    offsets = pa.array(columns.documents.astype(np.int32))
    ids = pa.array(columns.tokens.astype(id_type.to_pandas_dtype(), copy=False))
    words = pa.Array.from_buffers(pa.bool_(), tokens, [None, pa.py_buffer(columns.word_bits)])
    # Sentence starts are stored from their own document's start, so that a row stands by itself.
    owner = np.searchsorted(columns.documents, columns.sentences, side="right") - 1
    starts = pa.array((columns.sentences - columns.documents[owner]).astype(np.uint32))
    sentence_offsets = pa.array(np.searchsorted(columns.sentences, columns.documents).astype(np.int32))
    batch = pa.record_batch(
        {
            "tokens": pa.ListArray.from_arrays(offsets, ids),
            "words": pa.ListArray.from_arrays(offsets, words),
            "sentences": pa.ListArray.from_arrays(sentence_offsets, starts),
        }
    )
    assert batch.num_rows == count
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


# -------------------------------------------------------------------------------------------------------------- reading


def check_sizes(folder: Path, entries: Iterable[ShardEntry]) -> None:
    """Every shard is there with the size that the manifest says; DataError names the first that is not."""
    for entry in entries:
        path = folder / entry.name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            state = "is missing" if size is None else f"has {size:,} bytes instead of {entry.bytes:,}"
            raise DataError(f"shard {path} {state}; copy it again, or delete {folder / MANIFEST} and prepare again")


def check_folder(folder: Path, manifest: Manifest) -> None:
    """Every shard of the manifest is there in its size, and no other; DataError names the first that is at fault.

    One look at the folder and one at each file: 0.1 s for 10,000 shards on a local disk.
    """
    check_sizes(folder, manifest.shards)
    listed = {entry.name for entry in manifest.shards}
    strays = sorted(path.name for path in folder.glob("*.arrow") if path.name not in listed)
    if strays:
        raise DataError(
            f"shard {folder / strays[0]} is not in {MANIFEST}: two preparations mixed? Remove it, or "
            f"delete {folder / MANIFEST} and prepare again"
        )


def open_shard(folder: Path, entry: ShardEntry, vocabulary_size: int, verify: Verify = "hashes") -> Columns:
    """Map one shard into memory. With `verify="hashes"` its bytes are checked against the manifest first (2 GB/s).

    DataError names the shard and the cure when it is missing, damaged, or not what the manifest says.
    """
    path = folder / entry.name
    if verify != "never":
        check_sizes(folder, [entry])
    if verify == "hashes" and sha256_of(path) != entry.sha256:
        raise DataError(
            f"shard {path} is damaged or of another preparation (its hash is not the manifest's); copy it again, or "
            f"delete {folder / MANIFEST} and prepare again"
        )
    try:
        columns = _from_ipc(path)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"shard {path} cannot be read ({error}); copy it again, or delete {folder / MANIFEST} and prepare again"
        ) from None
    _check_columns(path, columns, entry, vocabulary_size, values=verify == "hashes")
    return columns


def _from_ipc(path: Path) -> Columns:
    file = pa.memory_map(str(path))
    with pa.ipc.open_file(file) as reader:
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches instead of one")
        schema = reader.schema
    # Between the magic and the footer lie the messages of a stream: the schema, then the batch.
    file.seek(8)
    pa.ipc.read_message(file)
    message = pa.ipc.read_message(file)
    if _is_compressed(message):
        raise ValueError("it is compressed, which could unfold to any size")
    batch = pa.ipc.read_record_batch(message, schema)
    # Sizes only, 20 us: an array that claims more than its buffer holds would be read beyond the file, a bus error.
    batch.validate()
    tokens, words, sentences = (batch.column(name) for name in ("tokens", "words", "sentences"))
    documents = np.asarray(tokens.offsets).astype(np.int64)
    sentence_offsets = np.asarray(sentences.offsets).astype(np.int64)
    starts = np.asarray(sentences.values).astype(np.int64)
    starts += np.repeat(documents[:-1], np.diff(sentence_offsets))
    return Columns(
        tokens=_buffer(tokens.values, tokens.values.type.to_pandas_dtype()),
        word_bits=_buffer(words.values, np.uint8),
        documents=documents,
        sentences=starts,
    )


def _is_compressed(message: Any) -> bool:
    """Whether a record batch's buffers are: what its flatbuffer tells, whose form Arrow has checked (Message.fbs).

    Arrow would unfold them as it reads, and zeros unfold a thousandfold.
    """
    data = message.metadata.to_pybytes()

    def follow(at: int) -> int:
        return at + struct.unpack_from("<I", data, at)[0]

    def field(table: int, index: int) -> int:
        """Where the field of a table lies; 0: it is not there."""
        fields = table - struct.unpack_from("<i", data, table)[0]
        size, slot = struct.unpack_from("<H", data, fields)[0], 4 + 2 * index
        offset = struct.unpack_from("<H", data, fields + slot)[0] if slot < size else 0
        return table + offset if offset else 0

    if message.type != "record batch":
        raise ValueError(f"a {message.type} instead of a record batch")
    header = field(follow(0), 2)
    return bool(field(follow(header), 3))


def _buffer(array: Any, dtype: Any) -> NDArray[Any]:
    """The memory of an Arrow array, not copied; bits stay packed."""
    data = np.frombuffer(array.buffers()[1], dtype=dtype)
    return data[: (len(array) + 7) // 8] if pa.types.is_boolean(array.type) else data[: len(array)]


def _check_columns(path: Path, columns: Columns, entry: ShardEntry, vocabulary_size: int, values: bool) -> None:
    """What must hold so that no later index can be out of range; the values too when the hash was checked."""
    begins = columns.documents[:-1][np.diff(columns.documents) != 0]
    sound = (
        len(columns.tokens) == entry.tokens == columns.documents[-1]
        and len(columns.documents) == entry.documents + 1
        and columns.documents[0] == 0
        and bool(np.all(np.diff(columns.documents) >= 0))
        and len(columns.sentences) == entry.sentences
        and bool(np.all(np.diff(columns.sentences, append=entry.tokens) > 0))
        and len(columns.word_bits) == (entry.tokens + 7) // 8
        # Each document begins with a sentence.
        and np.array_equal(np.append(columns.sentences, -1)[np.searchsorted(columns.sentences, begins)], begins)
    )
    if not sound:
        raise DataError(f"shard {path} does not hold what the manifest says; two preparations mixed? Prepare again")
    if values and entry.tokens and int(columns.tokens.max()) >= vocabulary_size:
        raise DataError(
            f"shard {path} has id {int(columns.tokens.max())}, the vocabulary {vocabulary_size} entries; prepare again"
        )
