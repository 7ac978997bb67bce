"""What a prepared folder holds: counts, lengths, the honest baseline, and samples to look at.

`Statistics.unigram_entropy` is the loss, in nats, of the best predictor that knows how often each token is used and
nothing of its surroundings: what a language model must beat. Reads every shard once, at about 1 GB/s.

Masks belong to another room. `show` takes a function that picks them, and draws what it picked:

    show(folder, 3, mask=lambda ids, word_starts, number: positions)
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nezha_ds.errors import DataError
from nezha_ds.shards import (
    MANIFEST,
    VOCABULARY,
    Columns,
    Manifest,
    ShardEntry,
    Split,
    read_manifest,
    unpack_words,
)
from nezha_ds.shelf import Shelf, as_shelf
from nezha_ds.text.vocab import CONTINUATION, Vocabulary, load_vocabulary

Counts = NDArray[np.int64]
PickMask = Callable[[NDArray[np.int64], NDArray[np.bool_], int], Collection[int]]
"""(L,) ids, (L,) word starts and the sample's number to the positions that are masked."""

SAMPLE_TOKENS = 128


@dataclass(frozen=True)
class Statistics:
    """Counts over both splits; token frequencies of the training split alone."""

    manifest: Manifest
    documents: int
    sentences: int
    words: int
    tokens: int
    unknowns: int
    token_counts: Counts
    """(V,): how often the training split uses each entry of the vocabulary."""
    sentence_lengths: Counts
    """Entry i: sentences of 2^i up to 2^(i+1) - 1 tokens."""
    document_lengths: Counts
    """Entry i: documents of 2^i up to 2^(i+1) - 1 tokens."""
    word_lengths: Counts
    """Entry i: words of i tokens."""

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


def entropy(counts: Counts) -> float:
    """The entropy, in nats, of the distribution that the counts make."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log(share)).sum())


def statistics(folder: Path | Shelf) -> Statistics:
    """Read a prepared folder through; DataError when it is not one, or damaged."""
    shelf = as_shelf(folder)
    manifest = read_manifest(shelf.folder)
    size = manifest.tokenizer.vocabulary_size
    tokens, sentences, documents, words = (np.zeros(0, dtype=np.int64) for _ in range(4))
    for entry, columns in _shards(shelf, manifest):
        if entry.split == "train":
            tokens = _add(tokens, np.bincount(columns.tokens, minlength=size))
        sentences = _add(sentences, _by_power(np.diff(columns.sentences, append=len(columns.tokens))))
        documents = _add(documents, _by_power(np.diff(columns.documents)))
        words = _add(words, np.bincount(np.diff(np.flatnonzero(unpack_words(columns)), append=len(columns.tokens))))
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
    )


def _shards(shelf: Shelf, manifest: Manifest) -> Iterator[tuple[ShardEntry, Columns]]:
    for entry in manifest.shards:
        yield entry, shelf.open_shard(entry, manifest.tokenizer.vocabulary_size)


def _by_power(lengths: Counts) -> Counts:
    """Histogram over [1, 2), [2, 4), [4, 8) … of lengths from 1 on."""
    return np.bincount(np.frexp(lengths)[1] - 1)


def _add(left: Counts, right: Counts) -> Counts:
    """The sum of two histograms, the shorter filled up with zeros."""
    size = max(len(left), len(right))
    return np.pad(left, (0, size - len(left))) + np.pad(right, (0, size - len(right)))


def folder_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary:
    """The vocabulary that lies in a prepared folder; DataError when it is not the one that its ids were made with."""
    vocabulary = load_vocabulary(folder / VOCABULARY)
    if vocabulary.sha256 != manifest.tokenizer.vocabulary_sha256:
        raise DataError(
            f"{folder / VOCABULARY} is not the vocabulary that {folder / MANIFEST} was prepared with; "
            "two preparations mixed? Prepare again"
        )
    return vocabulary


# ---------------------------------------------------------------------------------------------------------- the showing


def table(found: Statistics) -> Table:
    """The statistics to be printed."""
    rows = {
        "documents": f"{found.documents:,}",
        "sentences": f"{found.sentences:,}",
        "words": f"{found.words:,}",
        "tokens": f"{found.tokens:,}",
        "held-out documents": f"{sum(entry.documents for entry in found.manifest.of('heldout')):,}",
        "unknown tokens": f"{found.unknown_rate:.3%}",
        "words a sentence": f"{found.words_per_sentence:.1f}",
        "tokens a sentence": f"{found.tokens_per_sentence:.1f}",
        "tokens a word": f"{found.tokens_per_word:.2f}",
        "entropy of single tokens": f"{found.unigram_entropy:.3f} nats",
        "segmenter": f"{found.manifest.segmenter.name} {found.manifest.segmenter.version}",
        "shards": f"{len(found.manifest.shards):,} ({found.manifest.total('bytes') / 1e6:,.1f} MB)",
        "fingerprint": found.manifest.fingerprint[:16],
        "sentence lengths": bars(found.sentence_lengths),
        "document lengths": bars(found.document_lengths),
    }
    grid = Table(show_header=False, box=None)
    for name, value in rows.items():
        grid.add_row(name, value)
    return grid


def bars(counts: Counts) -> str:
    """A histogram by powers of two as one line of blocks, from the first length that occurs on."""
    first = int(np.flatnonzero(counts)[0])
    heights = np.ceil(counts[first:] * 8 / counts.max()).astype(int)
    blocks = "".join(" ▁▂▃▄▅▆▇█"[height] for height in heights)
    return f"{1 << first} {blocks} {1 << len(counts)} tokens"


def show(
    folder: Path | Shelf,
    samples: int,
    mask: PickMask | None = None,
    console: Console | None = None,
    split: Split = "train",
) -> None:
    """Print the beginnings of documents, spread evenly over a split, with words apart and masks in colour."""
    shelf = as_shelf(folder)
    manifest = read_manifest(shelf.folder)
    tokens = folder_vocabulary(shelf.folder, manifest).tokens
    console = console or Console()
    for number, (ids, word_starts) in enumerate(beginnings(shelf, manifest, samples, split)):
        masked = frozenset[int]() if mask is None else frozenset(mask(ids, word_starts, number))
        pieces = [tokens[int(index)] for index in ids]
        console.print(render(pieces, word_starts.tolist(), masked))
        console.print()


def beginnings(
    folder: Path | Shelf, manifest: Manifest, samples: int, split: Split
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """(ids, word starts) of the first SAMPLE_TOKENS tokens of up to `samples` documents, spread evenly over a split."""
    shelf, entries = as_shelf(folder), manifest.of(split)
    bounds = np.cumsum([0, *(entry.documents for entry in entries)], dtype=np.int64)
    total = int(bounds[-1])
    for place in range(0, total, max(1, total // max(1, samples)))[:samples]:
        shard = int(np.searchsorted(bounds, place, side="right")) - 1
        columns = shelf.open_shard(entries[shard], manifest.tokenizer.vocabulary_size)
        document = place - int(bounds[shard])
        start, stop = int(columns.documents[document]), int(columns.documents[document + 1])
        index = np.arange(start, min(stop, start + SAMPLE_TOKENS), dtype=np.int64)
        yield columns.tokens[index].astype(np.int64), columns.word_starts(index)


_WORD_STYLES = ("", "cyan")
_MASK_STYLE = "bold white on red"


def render(tokens: Sequence[str], word_starts: Sequence[bool], masked: Collection[int] = frozenset()) -> Text:
    """Tokens as text: words apart and in two colours by turns, masked tokens on red, `##` left out."""
    text, words = Text(), 0
    for position, (token, begins) in enumerate(zip(tokens, word_starts, strict=True)):
        if begins and position:
            text.append(" ")
        words += begins
        style = _MASK_STYLE if position in masked else _WORD_STYLES[words % len(_WORD_STYLES)]
        text.append(token.removeprefix(CONTINUATION) if position else token, style)
    return text
