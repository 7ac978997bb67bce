"""The formats: how the sentences of a shard become samples. RoBERTa's four (arXiv 1907.11692, section 4.1).

full-sentences  whole sentences in a row while they fit, across documents with a [SEP] between them
doc-sentences   the same, but the end of a document ends the sample
segment-pair    two runs of sentences of one document, or for half of the samples the second of another document
sentence-pair   the same with one sentence each

and for sentence order (ALBERT, arXiv 1909.11942) both pairs always of one document; half are swapped when a batch is
made, anew in every epoch (pipeline.py), so that the order of a pair cannot be learned by heart.

Where documents have ten sentences of 25 tokens, 88, 74, 78 and 39% of the places hold tokens at length 128, and 97, 43,
48 and 10% at 512: the price of not crossing documents. A shard is cut at 50 to 180M tokens/s.

No token is left out. Pairs are made as in BERT's own generator: a chunk of one document is cut in two between sentences
at random; if the second part is replaced, what was behind the cut goes back and begins the next sample. A chunk of one
sentence can only get a random second segment; a later chunk whose coin says random takes its real one in return, so
that labels are balanced wherever documents of one sentence are not the majority. Three things differ: chunks are cut
to fit and not truncated, so that nothing is lost; the random segment begins at any sentence outside the document, with
equal chance, so that long documents give more of them; and it is of the same shard, so that a rank reads no second one.

For sentence order, a sentence that is left alone, as a document's only or last one, is a sample without a second
segment, of which nothing is asked. A run of three or more before a last sentence gives it one of its own, so that this
is rare but for documents of one sentence, and odd ones where pairs are of single sentences.

All chance is a hash of (shard, sentence): a plan is a function of the data and of the settings, and the pairs are the
same in every epoch and under every seed, as sample numbers are. Masks are not, nor is what is swapped. 20 bytes a
pair, 8 another sample.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nezha_ds.data.randomness import U64, Purpose, below, draws, key_of, uniform
from nezha_ds.errors import DataError
from nezha_ds.shards import Columns, Offsets

LOOK_BACK = 8
"""Tokens by which a cut moves back to a word start: longer than nearly any word, 6% of a sample of 128."""
ATTEMPTS = 10
"""Random second segments that are tried until the first sentence of one fits whole; the last is cut where none does."""

SINGLE = np.dtype([("start", "<u4"), ("end", "<u4")])
"""A sample: its first token, and the token after its last, counted from its shard's start."""
PAIR = np.dtype([*((name, "<u4") for name in ("start", "end", "second", "second_end", "random"))])
"""The first segment, the second, and whether that is a random one."""
Records = NDArray[np.void]
Flags = NDArray[np.bool_]


class Format(NamedTuple):
    """How samples are cut, and what the plan keeps of each."""

    cut: Callable[[Columns, int, float, int], Records]
    """From a shard, the length, the share of short samples and the shard's number in its split."""
    record: np.dtype[np.void]


def full_sentences(columns: Columns, length: int, short_rate: float = 0.0, shard: int = 0) -> Records:
    """The samples of one shard, in order: each takes the sentences that follow while they fit.

    Where each sample would end is one binary search for all sentences at once; then the chain of samples is followed.
    """
    starts = _pieces(columns, length - 2)
    bounds = np.append(starts, len(columns.tokens))
    # Count a [SEP] before each document: then distances are what a sample has to hold.
    firsts, lasts = _with_separators(columns, starts), _with_separators(columns, bounds[1:] - 1)
    following = np.searchsorted(lasts, firsts + _targets(len(starts), length - 2, short_rate, shard), side="left")
    return _singles(bounds, following)


def doc_sentences(columns: Columns, length: int, short_rate: float = 0.0, shard: int = 0) -> Records:
    """The samples of one shard, in order: each takes the sentences of its document that follow while they fit."""
    starts = _pieces(columns, length - 2)
    bounds = np.append(starts, len(columns.tokens))
    targets = _targets(len(starts), length - 2, short_rate, shard)
    following = np.searchsorted(bounds[1:], starts + targets, side="right")
    return _singles(bounds, np.minimum(following, _document_pieces(columns, starts)[1]))


def segment_pair(columns: Columns, length: int, short_rate: float = 0.0, shard: int = 0) -> Records:
    """Pairs of runs of sentences that fill the sample. DataError where the shard has no second document."""
    return _pairs(columns, length, short_rate, shard, most=len(columns.tokens))


def sentence_pair(columns: Columns, length: int, short_rate: float = 0.0, shard: int = 0) -> Records:
    """Pairs of sentences; one of more than half a sample is cut. DataError where the shard has no second document."""
    return _pairs(columns, length, short_rate, shard, most=1)


def ordered_segments(columns: Columns, length: int, short_rate: float = 0.0, shard: int = 0) -> Records:
    """Two runs of sentences that follow each other and fill the sample; an empty second where a sentence is alone."""
    return _ordered(columns, length, short_rate, shard, most=len(columns.tokens))


def ordered_sentences(columns: Columns, length: int, short_rate: float = 0.0, shard: int = 0) -> Records:
    """Two sentences that follow each other; one of more than half a sample is cut, one alone has an empty second."""
    return _ordered(columns, length, short_rate, shard, most=1)


FORMATS: dict[str, Format] = {
    "full-sentences": Format(full_sentences, SINGLE),
    "doc-sentences": Format(doc_sentences, SINGLE),
    "segment-pair": Format(segment_pair, PAIR),
    "sentence-pair": Format(sentence_pair, PAIR),
}
ORDERED: dict[str, Format] = {
    "segment-pair": Format(ordered_segments, PAIR),
    "sentence-pair": Format(ordered_sentences, PAIR),
}
"""The pairs for sentence order."""


def _singles(bounds: Offsets, following: Offsets) -> Records:
    """Samples from each piece to the one that follows its sample; a piece longer than a short target stands alone."""
    following = np.maximum(following, np.arange(1, len(following) + 1))
    chain = np.array(_follow(following.tolist()), np.int64)
    records = np.empty(len(chain), SINGLE)
    records["start"], records["end"] = bounds[chain], bounds[following[chain]]
    return records


def _follow(following: Sequence[int]) -> list[int]:
    chain: list[int] = []
    at = 0
    while at < len(following):
        chain.append(at)
        at = following[at]
    return chain


def _targets(count: int, capacity: int, short_rate: float, shard: int) -> Offsets:
    """(count,): the tokens that a sample beginning at each piece aims at: 2 to capacity when short, else capacity."""
    key, pieces = key_of(shard), np.arange(count, dtype=np.uint64)
    short = np.flatnonzero(uniform(draws(key, pieces, Purpose.SHORT)) < short_rate)
    targets = np.full(count, capacity, np.int64)
    targets[short] = 2 + below(draws(key, pieces[short], Purpose.TARGET), capacity - 1)
    return targets


# ------------------------------------------------------------------------------------------------------------ the pairs


class _Chunks(NamedTuple):
    """The S pieces of a shard, and the chunk of one document that a sample beginning at each would take; each (S,)."""

    starts: Offsets
    bounds: Offsets
    """(S + 1,): the starts, and the shard's end."""
    first: Offsets
    """The first piece of the piece's document."""
    last: Offsets
    """The piece after its last."""
    targets: Offsets
    ends: Offsets
    """The piece after the chunk's last."""


def _chunks(columns: Columns, capacity: int, short_rate: float, shard: int, most: int) -> _Chunks:
    # Pieces of at most half a sample: any two fit, so a document's last piece alone has nothing to follow it.
    starts = _pieces(columns, capacity // 2)
    bounds, pieces = np.append(starts, len(columns.tokens)), np.arange(len(starts))
    first, last = _document_pieces(columns, starts)
    targets = _targets(len(starts), capacity, short_rate, shard)
    ends = np.maximum(np.searchsorted(bounds[1:], starts + targets, side="right"), pieces + 2)
    return _Chunks(starts, bounds, first, last, targets, np.minimum(np.minimum(ends, last), pieces + 2 * most))


def _cut_in_two(ends: Offsets, key: U64) -> Offsets:
    """(S,): the piece at which the second part of each chunk begins, by chance; the end of a chunk of one."""
    pieces = np.arange(len(ends))
    numbers = draws(key, pieces.astype(np.uint64), Purpose.CUT)
    return pieces + 1 + below(numbers, np.maximum(ends - pieces - 1, 1))


def _ordered(columns: Columns, length: int, short_rate: float, shard: int, most: int) -> Records:
    """Pairs of one document with at most `most` sentences in each segment."""
    _, bounds, _, last, _, ends = _chunks(columns, length - 3, short_rate, shard, most)
    pieces = np.arange(len(ends))
    # A chunk of three or more gives its last piece to the one that would be left alone behind it.
    ends = ends - ((last - ends == 1) & (ends - pieces > 2))
    cuts, chain = _cut_in_two(ends, key_of(shard)), np.array(_follow(ends.tolist()), np.int64)
    records = np.zeros(len(chain), PAIR)
    records["start"], records["end"] = bounds[chain], bounds[cuts[chain]]
    records["second"], records["second_end"] = bounds[cuts[chain]], bounds[ends[chain]]
    return records


def _pairs(columns: Columns, length: int, short_rate: float, shard: int, most: int) -> Records:
    """Pairs with at most `most` sentences in each segment, the second a random one for half of them."""
    capacity, key = length - 3, key_of(shard)
    starts, bounds, first, last, targets, chunks = _chunks(columns, capacity, short_rate, shard, most)
    if last[0] == len(starts):
        raise DataError("has one document only, and a random next segment comes from another; take doc-sentences")
    cuts = _cut_in_two(chunks, key)
    coins = uniform(draws(key, np.arange(len(starts), dtype=np.uint64), Purpose.NEXT)) < 0.5

    chain, random = _walk(chunks.tolist(), cuts.tolist(), coins.tolist())
    records = np.empty(len(chain), PAIR)
    records["start"], records["end"] = starts[chain], bounds[cuts[chain]]
    records["second"], records["second_end"] = bounds[cuts[chain]], bounds[chunks[chain]]
    records["random"] = random

    at = chain[random]
    held = bounds[cuts[at]] - starts[at]
    others = _others(key, at, first[at], last[at], np.diff(bounds), capacity - held)
    ends = np.searchsorted(bounds, starts[others] + targets[at] - held, side="right") - 1
    ends = np.minimum(np.maximum(ends, others + 1), np.minimum(last[others], others + most))
    records["second"][random] = starts[others]
    records["second_end"][random] = _fitting(columns, starts[others], bounds[ends], capacity - held)
    return records


def _walk(chunks: Sequence[int], cuts: Sequence[int], coins: Sequence[bool]) -> tuple[Offsets, Flags]:
    """The pieces at which samples begin, and which of them get a random second segment."""
    chain: list[int] = []
    labels: list[bool] = []
    at = debt = 0
    while at < len(chunks):
        chunk, random = chunks[at], coins[at]
        if chunk == at + 1:
            debt += not random
            random = True
        elif random and debt:
            debt -= 1
            random = False
        chain.append(at)
        labels.append(random)
        at = cuts[at] if random else chunk
    return np.array(chain, np.int64), np.array(labels, np.bool_)


def _others(key: U64, at: Offsets, first: Offsets, last: Offsets, sizes: Offsets, room: Offsets) -> Offsets:
    """(R,): a piece outside the document first .. last - 1 of each sample, if possible one that fits the room."""
    others, pending = np.empty_like(at), np.arange(len(at))
    for attempt in range(ATTEMPTS):
        numbers = draws(key, (at[pending] * ATTEMPTS + attempt).astype(np.uint64), Purpose.OTHER)
        own = last[pending] - first[pending]
        picked = below(numbers, len(sizes) - own)
        picked += own * (picked >= first[pending])
        others[pending] = picked
        pending = pending[sizes[picked] > room[pending]]
    return others


def _fitting(columns: Columns, starts: Offsets, ends: Offsets, room: Offsets) -> Offsets:
    """(R,): the ends, moved back to a word start where more than the room lies between start and end."""
    long = np.flatnonzero(ends - starts > room)
    near = (starts + room)[long][:, None] - np.arange(LOOK_BACK)
    near = np.maximum(near, starts[long][:, None] + 1)
    result = ends.copy()
    result[long] = near[np.arange(len(long)), columns.word_starts(near).argmax(axis=1)]
    return result


# ----------------------------------------------------------------------------------------------------------- the pieces


def _with_separators(columns: Columns, tokens: Offsets) -> Offsets:
    return tokens + np.searchsorted(columns.documents, tokens, side="right")


def _document_pieces(columns: Columns, starts: Offsets) -> tuple[Offsets, Offsets]:
    """(S,) each: the first piece of each piece's document, and the piece after its last."""
    document = np.searchsorted(columns.documents, starts, side="right")
    return (
        np.searchsorted(starts, columns.documents[document - 1], side="left"),
        np.searchsorted(starts, columns.documents[document], side="left"),
    )


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
        near = np.arange(start + capacity, start + capacity - min(LOOK_BACK, capacity), -1)
        start = int(near[columns.word_starts(near).argmax()])
        cuts.append(start)
    return cuts
