"""Slices of shards become rows of equal length, ready to be masked.

B samples, L length. Slices are copied end to end, then poured through the flags of the places that hold text, so that
[CLS], the [SEP] between documents or segments and the padding cost nothing per token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nezha_ds.data.dataset import Seconds, Slices
from nezha_ds.shards import Columns
from nezha_ds.text.vocab import Vocabulary

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class SpecialIds:
    """The ids of the tokens that are not text."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def special_ids(vocabulary: Vocabulary) -> SpecialIds:
    """The vocabulary's own."""
    return SpecialIds(
        pad=vocabulary.pad_id,
        unk=vocabulary.unk_id,
        cls=vocabulary.cls_id,
        sep=vocabulary.sep_id,
        mask=vocabulary.mask_id,
    )


def replacement_ids(vocabulary: Vocabulary) -> NDArray[np.int64]:
    """The entries that may stand for a masked token at random: all but [PAD], [MASK], [unused1] and their like."""
    return np.flatnonzero([vocabulary.is_text(index) for index in range(len(vocabulary))])


@dataclass(frozen=True)
class Rows:
    """B samples of length L, not masked."""

    ids: NDArray[np.int32]
    """(B, L): [CLS] text [SEP], with a [SEP] between documents or the segments of a pair, then [PAD]."""
    text: Flags
    """(B, L): what is text, and so may be predicted."""
    words: Flags
    """(B, L): where a word begins; also at a segment's first token, where a cut word may go on."""
    lengths: NDArray[np.int64]
    """(B,): tokens before the padding."""
    seconds: NDArray[np.int64] | None = None
    """(B,): where the second segment of a pair begins, after its [SEP]; the length of a row that has none."""


def gather(columns: Callable[[int], Columns], slices: Slices, length: int, special: SpecialIds) -> Rows:
    """The rows of B slices, each at most length - 2 tokens with the separators that it needs, or of B pairs."""
    shards = {shard: columns(shard) for shard in np.unique(slices.shards).tolist()}
    if slices.seconds is None:
        rows, places, seconds = *_separators(shards, slices), None
        sizes = slices.ends - slices.starts
    else:
        first, second = slices.ends - slices.starts, slices.seconds.ends - slices.seconds.starts
        rows = np.flatnonzero(second)
        places, sizes, seconds = first[rows] + 1, first + second, first + 2
        slices = _alternating(slices, slices.seconds)
    lengths = sizes + np.bincount(rows, minlength=len(sizes)) + 2

    column = np.arange(length, dtype=np.int16)
    text = (column > 0) & (column < (lengths - 1).astype(np.int16)[:, None])
    text[rows, places] = False

    ids = np.full((len(sizes), length), special.pad, np.int32)
    ids[text] = _tokens(shards, slices)
    ids[:, 0] = special.cls
    ids[rows, places] = special.sep
    ids[np.arange(len(sizes)), lengths - 1] = special.sep

    words = np.zeros(text.shape, np.bool_)
    words[text] = _word_starts(shards, slices)
    words[:, 1] = text[:, 1]
    if seconds is not None:
        words[rows, seconds[rows]] = text[rows, seconds[rows]]
    return Rows(ids, text, words, lengths, seconds)


def _alternating(slices: Slices, seconds: Seconds) -> Slices:
    """2 B slices: each first segment and then its second."""
    return Slices(
        np.repeat(slices.shards, 2),
        np.stack([slices.starts, seconds.starts], axis=1).reshape(-1),
        np.stack([slices.ends, seconds.ends], axis=1).reshape(-1),
    )


def _separators(shards: dict[int, Columns], slices: Slices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row and the column of every [SEP] between two documents."""
    rows: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    for shard, columns in shards.items():
        own = np.flatnonzero(slices.shards == shard)
        documents, starts = columns.documents, slices.starts[own]
        first = np.searchsorted(documents, starts, side="right")
        # An empty slice at a document's start has its end before its first: no separators.
        counts = np.maximum(np.searchsorted(documents, slices.ends[own], side="left") - first, 0)
        # The k-th document that begins inside a slice, k from 0, comes after [CLS] and k separators.
        k = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        rows.append(np.repeat(own, counts))
        places.append(documents[np.repeat(first, counts) + k] - np.repeat(starts, counts) + 1 + k)
    return np.concatenate(rows), np.concatenate(places)


def _tokens(shards: dict[int, Columns], slices: Slices) -> NDArray[np.uint16 | np.uint32]:
    """The tokens of all slices end to end."""
    tokens = {shard: columns.tokens for shard, columns in shards.items()}
    return np.concatenate([tokens[shard][start:end] for shard, start, end in _each(slices)])


def _word_starts(shards: dict[int, Columns], slices: Slices) -> NDArray[np.uint8]:
    """The word flags of all slices end to end: whole bytes are copied and unpacked at once, then aligned."""
    sizes = slices.ends - slices.starts
    packed = {shard: columns.word_bits for shard, columns in shards.items()}
    parts = [packed[shard][start >> 3 : (end + 7) >> 3] for shard, start, end in _each(slices)]
    bits = np.unpackbits(np.concatenate(parts), bitorder="little")
    held = 8 * (((slices.ends + 7) >> 3) - (slices.starts >> 3))
    first = np.cumsum(held) - held + (slices.starts & 7)
    return bits[np.arange(int(sizes.sum())) + np.repeat(first - (np.cumsum(sizes) - sizes), sizes)]


def _each(slices: Slices) -> "zip[tuple[int, int, int]]":
    return zip(slices.shards.tolist(), slices.starts.tolist(), slices.ends.tolist(), strict=True)
