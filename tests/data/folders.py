"""Small prepared folders with random text, for the tests of shards and data."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from nezha_ds.data.collate import SpecialIds
from nezha_ds.shards import (
    FORMAT,
    Columns,
    Manifest,
    SegmenterEntry,
    SourceEntry,
    Split,
    TokenizerEntry,
    pack_words,
    unpack_words,
    write_manifest,
    write_shard,
)

VOCABULARY_SIZE = 1000
SPECIAL = SpecialIds(pad=0, unk=100, cls=101, sep=102, mask=103)
RANDOM_IDS = np.arange(200, VOCABULARY_SIZE)

Document = list[list[list[int]]]
"""Sentences of words of ids."""


def to_columns(documents: list[Document]) -> Columns:
    tokens, flags, sentences, bounds = [], [], [], [0]
    for document in documents:
        for sentence in document:
            sentences.append(len(tokens))
            for word in sentence:
                tokens.extend(word)
                flags.extend([True] + [False] * (len(word) - 1))
        bounds.append(len(tokens))
    return Columns(
        tokens=np.array(tokens, np.uint16),
        word_bits=pack_words(np.array(flags, np.bool_)),
        documents=np.array(bounds, np.int64),
        sentences=np.array(sentences, np.int64),
    )


words = st.lists(st.integers(200, VOCABULARY_SIZE - 1), min_size=1, max_size=5)
sentences = st.lists(words, min_size=1, max_size=12)
documents = st.lists(st.lists(sentences, min_size=1, max_size=5), min_size=1, max_size=8)


def random_columns(seed: int, sentences: int, mean: int = 24) -> Columns:
    """Text of Chinese shape: words of 1 to 4 tokens, sentences of about `mean`, documents of about ten sentences."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(rng.poisson(mean, sentences) + 1)])
    tokens = int(starts[-1])
    word_starts = np.cumsum(rng.choice([1, 2, 3, 4], tokens, p=[0.5, 0.4, 0.07, 0.03])) - 1
    flags = np.zeros(tokens, np.bool_)
    flags[word_starts[word_starts < tokens]] = True
    flags[starts[:-1]] = True
    first = np.append(True, rng.random(sentences - 1) < 0.1)
    return Columns(
        tokens=rng.integers(200, VOCABULARY_SIZE, tokens).astype(np.uint16),
        word_bits=pack_words(flags),
        documents=np.append(starts[:-1][first], tokens),
        sentences=starts[:-1],
    )


def write_folder(
    folder: Path,
    shards: list[Columns],
    heldout: list[Columns] | None = None,
    weights: dict[str, int] | None = None,
    **changes: Any,
) -> Manifest:
    """A prepared folder of these shards, which are of its sources by turns; `changes` are of the manifest's fields."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights or {"random": 0}
    names = [*weights]
    parts: list[tuple[Split, str, Columns]] = [("train", names[at % len(names)], p) for at, p in enumerate(shards)]
    parts += [("heldout", names[at % len(names)], part) for at, part in enumerate(heldout or [])]
    entries = [
        write_shard(folder, f"{split}-{number:05d}.arrow", split, source, part, SPECIAL.unk, VOCABULARY_SIZE)
        for number, (split, source, part) in enumerate(parts)
    ]
    manifest = Manifest(
        format=FORMAT,
        tokenizer=TokenizerEntry(
            kind="bert-wordpiece", lowercase=True, vocabulary_size=VOCABULARY_SIZE, vocabulary_sha256="0" * 64
        ),
        segmenter=SegmenterEntry(name="none", version="1", dictionary_sha256="0" * 64),
        normalisation="plain/1",
        heldout=0.1,
        sources=tuple(SourceEntry(name=name, weight=weight, inputs=(name,)) for name, weight in weights.items()),
        shards=tuple(entries),
    )
    manifest = Manifest.model_validate(manifest.model_dump() | changes)
    write_manifest(folder, manifest)
    return manifest


def slow_row(columns: Columns, start: int, end: int, length: int) -> tuple[list[int], list[bool], list[bool]]:
    """ids, text and word starts of one sample, token by token."""
    flags, bounds = unpack_words(columns), set(columns.documents.tolist())
    ids, text, begins = [SPECIAL.cls], [False], [False]
    for token in range(start, end):
        if token in bounds and token != start:
            ids, text, begins = [*ids, SPECIAL.sep], [*text, False], [*begins, False]
        ids.append(int(columns.tokens[token]))
        text.append(True)
        begins.append(bool(flags[token]) or token == start)
    ids.append(SPECIAL.sep)
    missing = length - len(ids)
    assert missing >= 0
    return ids + [SPECIAL.pad] * missing, text + [False] * (missing + 1), begins + [False] * (missing + 1)
