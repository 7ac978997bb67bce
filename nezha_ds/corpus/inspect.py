"""What a prepared folder holds: counts, lengths, the honest baseline, and what is most frequent.

`Statistics.unigram_entropy` is the loss, in nats, of the best predictor that knows how often each token is used and
nothing of its surroundings: what a language model must beat. Shards are read one at a time, in 4 s a GB of one core.

This file counts, and tells machines; `terminal.py` and `page.py` draw the same for people. Samples and masks are made
in another room and come in as `Masks`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nezha_ds.corpus.executor import Gauge
from nezha_ds.corpus.masks import OUTCOMES, Masks
from nezha_ds.corpus.progress import watched
from nezha_ds.corpus.report import Report
from nezha_ds.errors import DataError
from nezha_ds.files import sha256_of
from nezha_ds.shards import MANIFEST, Columns, Ids, Manifest, read_manifest
from nezha_ds.shelf import Shelf, as_shelf
from nezha_ds.text.kinds import kind_of
from nezha_ds.text.vocab import Vocabulary

Counts = NDArray[np.int64]

FREQUENT = 40
"""How many of the most frequent tokens and words are told."""
_COUNTED_WORDS = 4_000_000
"""Words that are compared to find the frequent ones: 32 MB, and the same number of them from each shard."""
_BLOCK = 1 << 18
"""Tokens whose words are counted at once: their arrays stay in the cache, which halves the time."""
_QUICK = 300 << 20
"""Bytes that are read before anybody would miss a progress bar."""


@dataclass(frozen=True)
class Statistics:
    """Counts over both splits; frequencies of the training split alone."""

    manifest: Manifest
    documents: int
    sentences: int
    words: int
    tokens: int
    unknowns: int
    token_counts: Counts
    """(V,): how often the training split uses each entry of the vocabulary."""
    sentence_lengths: Counts
    """Sentences by tokens; entry i is of lengths from edges()[i] on."""
    document_lengths: Counts
    """Documents by tokens; entry i is of lengths from edges()[i] on."""
    word_lengths: Counts
    """Entry i: words of i tokens."""
    frequent_words: tuple[tuple[tuple[int, ...], int], ...]
    """Words of two tokens or more with how often they were met, the most frequent first."""
    compared_words: int
    """How many words were gone through for them: all, or the first of each shard."""

    @property
    def heldout_documents(self) -> int:
        """Documents set apart for evaluation."""
        return sum(entry.documents for entry in self.manifest.of("heldout"))

    @property
    def unknown_rate(self) -> float:
        """The share of tokens that are [UNK]."""
        return self.unknowns / self.tokens

    @property
    def words_per_sentence(self) -> float:
        """Mean words of a sentence."""
        return self.words / self.sentences

    @property
    def tokens_per_sentence(self) -> float:
        """Mean tokens of a sentence."""
        return self.tokens / self.sentences

    @property
    def tokens_per_word(self) -> float:
        """Mean tokens of a word; 1 means that nobody looked for words."""
        return self.tokens / self.words

    @property
    def unigram_entropy(self) -> float:
        """Entropy, in nats, of the training split's token frequencies."""
        return entropy(self.token_counts)

    @property
    def frequent_tokens(self) -> list[tuple[int, int]]:
        """(id, count) of the tokens most frequent in the training split, the most frequent first."""
        top = np.argsort(-self.token_counts, kind="stable")[:FREQUENT].tolist()
        return [(index, int(self.token_counts[index])) for index in top if self.token_counts[index]]


def entropy(counts: Counts) -> float:
    """The entropy, in nats, of the distribution that the counts make."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log(share)).sum())


# --------------------------------------------------------------------------------------------------------- the counting


def statistics(folder: Path | Shelf, progress: bool = False) -> Statistics:
    """Read a prepared folder through; DataError when it is not one, or damaged.

    `progress` draws a bar on stderr if there is much to read.
    """
    shelf, gauge = as_shelf(folder), Gauge(shared=False)
    manifest = read_manifest(shelf.folder)
    shelf.check(manifest)
    size, bound = manifest.tokenizer.vocabulary_size, manifest.total("bytes")
    share = _COUNTED_WORDS // max(1, len(manifest.of("train")))
    tokens, sentences, documents, words = (np.zeros(0, dtype=np.int64) for _ in range(4))
    packed: list[NDArray[np.uint64]] = []
    with watched("inspect", bound, gauge.read, shown=progress and bound > _QUICK):
        for entry in manifest.shards:
            columns = shelf.open_shard(entry, size)
            sentences = _add(sentences, by_length(np.diff(columns.sentences, append=len(columns.tokens))))
            documents = _add(documents, by_length(np.diff(columns.documents)))
            words = _add(words, _word_lengths(columns))
            if entry.split == "train":
                tokens = _add(tokens, _frequencies(columns, size))
                packed.append(_pack(columns, share, _bits(size)))
            gauge.add(entry.bytes)
    return Statistics(
        manifest=manifest,
        documents=manifest.total("documents"),
        sentences=manifest.total("sentences"),
        words=manifest.total("words"),
        tokens=manifest.total("tokens"),
        unknowns=manifest.total("unknowns"),
        token_counts=tokens,
        sentence_lengths=sentences,
        document_lengths=documents,
        word_lengths=words,
        frequent_words=tuple(_most_frequent(packed, _bits(size))),
        compared_words=sum(min(share, entry.words) for entry in manifest.of("train")),
    )


def _frequencies(columns: Columns, vocabulary_size: int) -> Counts:
    """(V,): how often a shard uses each token."""
    counts = np.zeros(vocabulary_size, np.int64)
    for first in range(0, len(columns.tokens), _BLOCK):
        counts += np.bincount(columns.tokens[first : first + _BLOCK], minlength=vocabulary_size)
    return counts


def _word_lengths(columns: Columns) -> Counts:
    """Entry i: a shard's words of i tokens."""
    lengths = np.zeros(0, np.int64)
    for _, sizes in _words(columns):
        lengths = _add(lengths, np.bincount(sizes))
    return lengths


def _words(columns: Columns) -> Iterator[tuple[Counts, Counts]]:
    """Where the words of a shard begin, and their sizes, block by block."""
    for first in range(0, len(columns.tokens), _BLOCK):
        end = min(first + _BLOCK, len(columns.tokens))
        bits = np.unpackbits(columns.word_bits[first >> 3 : (end + 7) >> 3], count=end - first, bitorder="little")
        starts = np.flatnonzero(bits.view(np.bool_)) + first
        while end < len(columns.tokens) and not columns.word_starts(np.array(end)):
            end += 1  # the block's last word goes on in the next
        yield starts, np.diff(starts, append=end)


def by_length(lengths: Counts) -> Counts:
    """Histogram of lengths from 1 on, four bins to each doubling: 1, 2, 3, 4, 5, 6, 7, 8-9, 10-11, 12-13, … tokens."""
    mantissa, exponent = np.frexp(lengths)
    return np.bincount(np.where(lengths < 4, lengths - 1, 4 * exponent - 13 + (mantissa * 8).astype(np.int64)))


def edges(bins: int) -> list[int]:
    """(bins + 1,): the length at which each bin of `by_length` begins, and where the last one ends."""
    return [index + 1 if index < 3 else (4 + (index - 3) % 4) << ((index - 3) // 4) for index in range(bins + 1)]


def _add(left: Counts, right: Counts) -> Counts:
    """The sum of two histograms, the shorter filled up with zeros."""
    size = max(len(left), len(right))
    return np.pad(left, (0, size - len(left))) + np.pad(right, (0, size - len(right)))


def _bits(vocabulary_size: int) -> int:
    """Bits that an id takes in a packed word: 16 for four tokens in a word of 64, up to 65,535 entries."""
    return max(16, vocabulary_size.bit_length())


def _pack(columns: Columns, most: int, bits: int) -> NDArray[np.uint64]:
    """The first `most` words of a shard that have two tokens or more, as many as fit 64 bits: ids plus one, the first
    lowest.
    """
    parts: list[NDArray[np.uint64]] = []
    for starts, sizes in _words(columns):
        fitting = (sizes[:most] > 1) & (sizes[:most] <= 64 // bits)
        parts.append(_pack_block(columns.tokens, starts[:most][fitting], sizes[:most][fitting], bits))
        most -= len(starts)
        if most <= 0:
            break
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _pack_block(tokens: Ids, starts: Counts, sizes: Counts, bits: int) -> NDArray[np.uint64]:
    packed = np.zeros(len(starts), np.uint64)
    for place in range(64 // bits):
        longer = np.flatnonzero(sizes > place)
        ids = tokens[starts[longer] + place].astype(np.uint64) + np.uint64(1)
        packed[longer] |= ids << np.uint64(bits * place)
    return packed


def _most_frequent(parts: Sequence[NDArray[np.uint64]], bits: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """The most frequent of the packed words as ids, with their counts; equal counts in the order of the ids."""
    words, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]), return_counts=True)
    for place in np.argsort(-counts, kind="stable")[:FREQUENT].tolist():
        word = int(words[place])
        ids = [word >> shift & (1 << bits) - 1 for shift in range(0, 64 // bits * bits, bits)]
        yield tuple(index - 1 for index in ids if index), int(counts[place])


def folder_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary:
    """The vocabulary that lies in a prepared folder; DataError when it is not the one that its ids were made with."""
    kind = kind_of(manifest.tokenizer.kind, folder / MANIFEST)
    path = folder / kind.file
    # The hash first: what else is wrong with a damaged file has no other cure.
    if path.is_file() and sha256_of(path) != manifest.tokenizer.vocabulary_sha256:
        raise DataError(
            f"{path} is not the vocabulary that {folder / MANIFEST} was prepared with; "
            "damaged, or two preparations mixed? Copy it again, or prepare again"
        )
    return kind.load(path)


def told(found: Statistics) -> dict[str, str]:
    """What is told of a folder in numbers, by name, for the terminal and the page."""
    return {
        "documents": f"{found.documents:,}",
        "sentences": f"{found.sentences:,}",
        "words": f"{found.words:,}",
        "tokens": f"{found.tokens:,}",
        "held-out documents": f"{found.heldout_documents:,}",
        "unknown tokens": f"{found.unknown_rate:.3%}",
        "words a sentence": f"{found.words_per_sentence:.1f}",
        "tokens a sentence": f"{found.tokens_per_sentence:.1f}",
        "tokens a word": f"{found.tokens_per_word:.2f}",
    }


def word(ids: Sequence[int], vocabulary: Vocabulary) -> str:
    """A word as it stands in the text."""
    return "".join(map(vocabulary.text_of, ids))


# --------------------------------------------------------------------------------------------------------- the machines


def as_json(found: Statistics, masks: Masks, vocabulary: Vocabulary, report: Report | None) -> dict[str, Any]:
    """All statistics as a plain tree; lengths as [from, to, count]."""
    manifest = found.manifest
    return {
        "fingerprint": manifest.fingerprint,
        "documents": found.documents,
        "heldout_documents": found.heldout_documents,
        "sentences": found.sentences,
        "words": found.words,
        "tokens": found.tokens,
        "unknowns": found.unknowns,
        "unigram_entropy_nats": found.unigram_entropy,
        "sentence_lengths": _ranges(found.sentence_lengths),
        "document_lengths": _ranges(found.document_lengths),
        "word_lengths": [[size, size, count] for size, count in enumerate(found.word_lengths.tolist()) if count],
        "frequent_tokens": [[vocabulary.text_of(index), count] for index, count in found.frequent_tokens],
        "frequent_words": [[word(ids, vocabulary), count] for ids, count in found.frequent_words],
        "compared_words": found.compared_words,
        "tokenizer": manifest.tokenizer.model_dump(mode="json"),
        "segmenter": manifest.segmenter.model_dump(mode="json"),
        "normalisation": manifest.normalisation,
        "sources": [source.model_dump(mode="json") for source in manifest.sources],
        "shards": len(manifest.shards),
        "bytes": manifest.total("bytes"),
        "masking": {
            "method": masks.method,
            "format": masks.format,
            "length": masks.length,
            "seed": masks.seed,
            "samples": masks.samples,
            "asked_rate": masks.asked_rate,
            "achieved_rate": masks.achieved_rate,
            "outcomes": dict(zip(OUTCOMES, masks.outcomes, strict=True)),
            "word_lengths": masks.word_lengths,
            "fill": masks.mean_fill,
            "pairs": dict(masks.pairs),
        },
        "report": None if report is None else report.model_dump(mode="json"),
    }


def _ranges(counts: Counts) -> list[list[int]]:
    bounds = edges(len(counts))
    return [[bounds[index], bounds[index + 1] - 1, count] for index, count in enumerate(counts.tolist()) if count]
