"""What a vocabulary is trained on: how often each word occurs, counted in bounded memory.

BERT's words are its isolated characters and what its pre-tokenizer makes of the runs between them; each distinct run is
cut once, so counting goes at 35 MB/s of Chinese UTF-8 a core. For byte-level BPE, words are the segmenter's, each with
the space before it: merges are learned inside them, and a token that is used later seldom lies over two (10 MB/s).

When a million words are known, all but the half million most frequent are forgotten, so that memory has a bound.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as Pipeline
from tokenizers import pre_tokenizers

from nezha_ds.text.segment import make_segmenter
from nezha_ds.text.tokenizer import Tokenizer, bert_pipeline
from nezha_ds.text.vocab import load_vocabulary

KEPT = 1 << 19
"""Words that are kept when there are twice as many."""


class WordCounter(Protocol):
    """Counts the words of one text after another."""

    def add(self, text: str) -> None:
        """Count a normalised text."""
        ...

    def words(self) -> Counter[str]:
        """How often each word occurred, as a tokenizer would see it."""
        ...


def prune(counts: Counter[str], kept: int) -> None:
    """Forget the rarest words of a table that has grown to twice `kept`; of equal ones those that sort last."""
    if len(counts) >= 2 * kept:
        best = ranked(counts)[:kept]
        counts.clear()
        counts.update(dict(best))


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Words and counts, the most frequent first, equal ones in the order of their characters."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


@lru_cache(maxsize=1)
def _bert(lowercase: bool) -> tuple[Tokenizer, Pipeline]:
    """This process's own, for one task after another."""
    vocabulary = load_vocabulary()  # no matter which: no id is looked at
    return Tokenizer(vocabulary, lowercase), bert_pipeline(vocabulary, lowercase)


_segmenter = lru_cache(maxsize=1)(make_segmenter)


class BertWords:
    """Counts what BERT's pre-tokenizer calls words: isolated characters, and whatever stands between."""

    def __init__(self, lowercase: bool) -> None:
        self._tokenizer, self._pipeline = _bert(lowercase)
        self._pieces: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Count a normalised text."""
        isolated, runs = self._tokenizer.split(text)
        self._pieces.update(isolated)
        self._pieces.update(runs)
        prune(self._pieces, KEPT)

    def words(self) -> Counter[str]:
        """How often each word occurred, normalised as BERT does."""
        words: Counter[str] = Counter()
        normalise, cut = self._pipeline.normalizer.normalize_str, self._pipeline.pre_tokenizer.pre_tokenize_str
        for piece, count in self._pieces.items():
            for word, _ in cut(normalise(piece)):
                words[word] += count
        return words


class ByteWords:
    """Counts a segmenter's words in the characters that byte-level BPE has for bytes."""

    def __init__(self, segmenter: str, user_dictionary: Path | None) -> None:
        self._segmenter = _segmenter(segmenter, user_dictionary)
        self._pieces: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Count a normalised text."""
        # A space belongs to the word after it, so no cut follows one.
        starts = [at for at in self._segmenter.word_starts(text).tolist() if not text[at - 1 : at].isspace()]
        self._pieces.update(text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True))
        prune(self._pieces, KEPT)

    def words(self) -> Counter[str]:
        """How often each word occurred."""
        words: Counter[str] = Counter()
        cut = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
        for piece, count in self._pieces.items():
            for word, _ in cut(piece):
                words[word] += count
        return words


MakeCounter = Callable[[bool, str, Path | None], WordCounter]
"""From whether to lower-case, the segmenter's name and the user dictionary."""

COUNTERS: dict[str, MakeCounter] = {
    "bert-wordpiece": lambda lowercase, segmenter, dictionary: BertWords(lowercase),
    "words": lambda lowercase, segmenter, dictionary: BertWords(lowercase),
    "byte-bpe": lambda lowercase, segmenter, dictionary: ByteWords(segmenter, dictionary),
}
