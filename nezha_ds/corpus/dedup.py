"""Duplicates: which documents stand elsewhere already, and which nearly do (`near`).

Exact ones are found by a 64-bit key of each document's normalised text.

The same key decides what is held out, so copies of a document never stand on both sides. A survey reads every task's
keys first; the earliest document in task order stays, whatever process read it. Costs a second reading of the input
and 24 bytes a document. Two different documents share a key with a chance of n²/2⁶⁵: 0.03% for 100 million documents,
and then one of them is lost.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nezha_ds.corpus.near import Sketches, near_copies

KEYS = 1 << 64
"""How many keys there are."""
VERDICTS = (None, "copies", "near copies")
"""Why a document goes, by its number; the first stays."""


@dataclass(frozen=True)
class Survey:
    """What is known of a task's D documents before any is encoded."""

    keys: NDArray[np.uint64]
    """(D,)"""
    sketches: Sketches
    """(D, P); P is 0 when nobody looks for near duplicates."""


def verdicts(surveys: list[Survey], exact: bool, threshold: float) -> list[bytes]:
    """For each task a byte a document: its place in VERDICTS. Near duplicates from the threshold on, none at 0.

    Takes the surveys out of the list, so that their sketches are in memory once.
    """
    bounds = np.cumsum([0, *(len(survey.keys) for survey in surveys)])
    found = np.zeros(bounds[-1], dtype=np.uint8)
    if exact:
        copies = later_copies([survey.keys for survey in surveys])
        for start, part in zip(bounds, copies, strict=False):
            found[start + part] = VERDICTS.index("copies")
    if threshold:
        near = near_copies(_all_sketches(surveys), found != 0, threshold)
        found[near] = VERDICTS.index("near copies")
    return [found[start:stop].tobytes() for start, stop in pairwise(bounds)]


def _all_sketches(surveys: list[Survey]) -> Sketches:
    """(D, P) of all tasks; empties the list."""
    documents = sum(len(survey.keys) for survey in surveys)
    together = np.empty((documents, max((survey.sketches.shape[1] for survey in surveys), default=0)), dtype=np.uint8)
    stop = documents
    while surveys:
        part = surveys.pop().sketches
        together[stop - len(part) : stop] = part
        stop -= len(part)
    return together


def document_key(text: str) -> int:
    """The first 64 bits of the SHA-256 of a normalised text, 1.5 GB/s."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def later_copies(keys: Sequence[NDArray[np.uint64]]) -> list[NDArray[np.int64]]:
    """For each task, the positions of the documents whose key stands earlier, in it or in a task before."""
    together = np.concatenate([np.zeros(0, dtype=np.uint64), *keys])
    repeated = np.ones(len(together), dtype=np.bool_)
    repeated[np.unique(together, return_index=True)[1]] = False
    ends = np.cumsum([len(part) for part in keys])
    return [np.flatnonzero(repeated[end - len(part) : end]) for part, end in zip(keys, ends, strict=True)]
