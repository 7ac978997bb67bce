"""The rows that `material.shards` wrote, as the rivals' packers and collator want them."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import BertTokenizerFast, DataCollatorForLanguageModeling, DataCollatorForWholeWordMask

T = TypeVar("T")

CLS, SEP = 101, 102


class Sample(NamedTuple):
    """One sample without its padding."""

    ids: NDArray[np.uint16]
    """(T,): [CLS] text [SEP]."""
    inside: NDArray[np.uint16]
    """Positions of the tokens that continue a word: the collator's `chinese_ref`."""


def padded(folder: str, length: int) -> NDArray[np.uint16]:
    """(N, L) ids."""
    return np.load(Path(folder) / f"samples-{length}.npz")["ids"]


def samples(folder: str, length: int) -> Iterator[Sample]:
    """All N of them."""
    made = np.load(Path(folder) / f"samples-{length}.npz")
    continues = ~made["words"] & (made["ids"] != CLS) & (made["ids"] != SEP)
    for ids, size, inside in zip(made["ids"], made["lengths"], continues, strict=True):
        yield Sample(ids[:size], np.flatnonzero(inside[:size]).astype(np.uint16))


def collator(folder: str, method: str = "whole-word") -> DataCollatorForLanguageModeling:
    """Hugging Face's, which gives what our side gives: masked ids and labels, 15%, 80/10/10. It has none for n-grams
    and spans, and whole words in their place.
    """
    kind = DataCollatorForLanguageModeling if method == "character" else DataCollatorForWholeWordMask
    return kind(BertTokenizerFast(str(Path(folder) / "vocab.txt")))


def example(ids: NDArray[np.uint16], inside: NDArray[np.uint16]) -> dict[str, list[int]]:
    """What the collator takes."""
    return {"input_ids": ids.tolist(), "chinese_ref": inside.tolist()}


def endless(batches: Iterable[T]) -> Iterator[T]:
    """One epoch after another."""
    return chain.from_iterable(repeat(batches))


def count(batches: Iterator[Any], length: int, batch: int, tokens: int) -> float:
    """Take batches until about so many tokens came, padding included; how many did."""
    taken = sum(len(one) for one in islice(batches, tokens // (batch * length)))
    return taken * length
