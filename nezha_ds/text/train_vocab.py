"""Counted words to a vocabulary, through Hugging Face's trainers: the same words, the same file.

    bert-wordpiece  characters first, the most frequent; then pieces of the words that have several
    byte-bpe        the 256 bytes, then pairs of what is there, the most frequent first
    words           the most frequent words themselves: for anonymised ids, which have no pieces

The trainers take text, not counts, so each word is written as often as it occurs, up to 50 million words in all;
beyond, all counts are divided alike, rounded by a hash of the word so that rare words do not vanish together. Left to
themselves the trainers number the characters inside words (`##a`) in the order of a randomly seeded hash table, and
which of two equally frequent pairs wins depends on it; here every character is numbered beforehand.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

from tokenizers import Tokenizer as Pipeline
from tokenizers import models, pre_tokenizers, trainers

from nezha_ds.text import byte_bpe
from nezha_ds.text.tokenizer import LONGEST_WORD
from nezha_ds.text.vocab import CONTINUATION, SPECIAL_TOKENS
from nezha_ds.text.words import ranked

FED = 50_000_000
"""Words that a trainer is given at most."""
_LINE = 1 << 16
"""Characters that a trainer is given at once."""

Train = Callable[[Mapping[str, int], int, int, int | None, Sequence[str]], bytes]
"""From words and how often each occurs, the size, the least frequency, the most characters, and further special tokens;
the vocabulary's file.
"""


def train_wordpiece(
    words: Mapping[str, int], size: int, min_frequency: int, alphabet: int | None, special: Sequence[str]
) -> bytes:
    """A vocab.txt. Without `alphabet`, characters get two thirds of the entries, and what pieces leave."""
    reserved = [*SPECIAL_TOKENS, *special]
    room = size - len(reserved)
    known = [unit for unit, count in ranked(_units(words)) if count >= min_frequency]
    most = min(room, alphabet or room * 2 // 3)
    kept = set(known[:most])
    fixed = [*reserved, *sorted(kept, key=lambda unit: (len(unit), unit))]
    several = {word: count for word, count in words.items() if len(word) > 1 and kept.issuperset(units_of(word))}
    # The trainer also enters the bare form of a character that is never first in a word.
    bare = {character for word in several for character in word} - kept
    trainer = trainers.WordPieceTrainer(
        vocab_size=size + len(bare),
        min_frequency=_threshold(several, min_frequency),
        special_tokens=fixed,
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    pipeline = _train(Pipeline(models.WordPiece()), trainer, several)
    ids = pipeline.get_vocab()
    entries = sorted(ids.keys() - bare, key=ids.__getitem__)
    if alphabet is None:
        entries += known[most:][: size - len(entries)]
    return _lines(entries)


def units_of(word: str) -> list[str]:
    """A word's characters as entries of a vocabulary: `a`, `##b`, `##c`."""
    return [word[0], *(CONTINUATION + character for character in word[1:])]


def _units(words: Mapping[str, int]) -> Counter[str]:
    """How often each character begins a word, and how often it goes on with one."""
    units: Counter[str] = Counter()
    for word, count in words.items():
        for unit in units_of(word) if len(word) <= LONGEST_WORD else ():
            units[unit] += count
    return units


def train_byte_bpe(
    words: Mapping[str, int], size: int, min_frequency: int, alphabet: int | None, special: Sequence[str]
) -> bytes:
    """A tokenizer.json. The alphabet is always all bytes."""
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=_threshold(words, min_frequency),
        special_tokens=[*byte_bpe.ORDER, *special],
        initial_alphabet=[*byte_bpe.BYTE_OF],
        show_progress=False,
    )
    model: Any = json.loads(_train(Pipeline(models.BPE()), trainer, words).to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    return byte_bpe.byte_file(model["vocab"], merges, special)


def train_words(
    words: Mapping[str, int], size: int, min_frequency: int, alphabet: int | None, special: Sequence[str]
) -> bytes:
    """A vocab.txt of whole words."""
    reserved = [*SPECIAL_TOKENS, *special]
    frequent = [word for word, count in ranked(words) if count >= min_frequency and len(word) <= LONGEST_WORD]
    return _lines([*reserved, *frequent[: size - len(reserved)]])


TRAINERS: dict[str, Train] = {
    "bert-wordpiece": train_wordpiece,
    "byte-bpe": train_byte_bpe,
    "words": train_words,
}


def _lines(entries: Sequence[str]) -> bytes:
    return ("\n".join(entries) + "\n").encode()


def _train(pipeline: Pipeline, trainer: Any, words: Mapping[str, int]) -> Pipeline:
    pipeline.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pipeline.train_from_iterator(_repeated(words, _divisor(words)), trainer)
    return pipeline


def _divisor(words: Mapping[str, int]) -> int:
    """By what all counts are divided, so that at most FED words are written."""
    return max(1, -(-sum(words.values()) // FED))


def _threshold(words: Mapping[str, int], min_frequency: int) -> int:
    """The least frequency in divided counts."""
    return max(1, round(min_frequency / _divisor(words)))


def _repeated(words: Mapping[str, int], divisor: int) -> Iterator[str]:
    """Lines with each word as often as it occurs, divided; no word holds white space."""
    for word, count in words.items():
        left, at_once = (count + crc32(word.encode()) % divisor) // divisor, max(1, _LINE // (len(word) + 1))
        while left > 0:
            yield f"{word} " * min(left, at_once)
            left -= at_once
