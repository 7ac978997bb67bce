"""Near duplicates by MinHash: documents that share most of their passages of 5 characters with an earlier one.

1. The survey sketches each document: as many hash minima as asked for, of all its passages of SHINGLE characters, white
   space left out, so that another line break is no change. One byte of each is kept. Two sketches agree in a share of
   their values that is the Jaccard similarity of the two sets of passages, within 3.5% at 0.8 and 128 values.
2. Values are taken together in bands. Documents that agree in a whole band share a bucket; in a bucket, each is
   compared with the earliest, and goes if the two are similar. What is left is compared with the earliest of that, up
   to LEADERS times: never all with all, however many equal or unequal documents a bucket holds.

What goes is similar to an earlier document; the first of all stays. The result depends on the documents' order alone.

Sketching costs 25 us a document of 1,200 characters (150 MB/s) beside the survey's reading. Searching costs 3 us a
document and, in the one process that does it, 128 bytes, with 60 more for the moment of a band: 40 s and 1.9 GB for 10
million documents.

The sketches are rensa's R-MinHash (MIT; last release 2026-09; wheels without dependencies), the same with every
instruction set. datasketch 2.0 sketches 8 MB/s of the same hashes and needs SciPy. The bands are ours: rensa's index
flags every document of a bucket, the first too, and verifies none.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nezha_ds.corpus.clean import code_points
from nezha_ds.errors import LaunchError

Sketches = NDArray[np.uint8]
"""(D, P): a byte of each of P minima of D documents."""

SHINGLE = 5
"""Characters of a passage. Shorter ones are shared by texts that have only their language in common."""
LEADERS = 16
"""Documents of a bucket that its others are compared with, at most."""
LARGEST_BAND = 8
"""Values of a band, at most: the bytes of an integer of 64 bits."""

_SURE = 0.99
_SEED = 1
_AT_ONCE = 1 << 16
_ACCIDENT = 1 / 256
"""How often a byte agrees although the values do not."""


@lru_cache(maxsize=1)
def _rensa() -> Any:
    try:
        import rensa  # pyright: ignore[reportMissingTypeStubs]

        module: Any = rensa
    except ImportError:
        raise LaunchError(
            "near_duplicates needs rensa, which is not installed; `pip install 'nezha-ds[clean]'`"
        ) from None
    return module.RMinHash


def describe(threshold: float, values: int) -> str:
    """What the search depends on beside the documents, empty at threshold 0. LaunchError without the library."""
    if not threshold:
        return ""
    algorithm = _rensa().ALGORITHM_VERSION
    return f"{threshold} of passages of {SHINGLE} by {values} values of rensa/{version('rensa')}/{algorithm}"


# --------------------------------------------------------------------------------------------------------- the sketches


def sketches(texts: Iterable[str], values: int) -> Sketches:
    """(D, values): the sketch of each text, which for no values is nothing."""
    found, documents = bytearray(), 0
    for text in texts:
        documents += 1
        if values:
            found += _sketch(shingles(text), values)
    return np.frombuffer(found, dtype=np.uint8).reshape(documents, values)


def _sketch(hashes: NDArray[np.uint64], values: int) -> bytes:
    ends = np.array([0, len(hashes)], dtype=np.uint64)
    matrix = _rensa().digest_matrix_from_flat_token_hashes(hashes, ends, values, _SEED)
    # The low byte: a minimum is small, so its high bits tell little.
    return np.array(matrix.to_rows()[0], dtype=np.uint32).astype(np.uint8).tobytes()


def shingles(text: str) -> NDArray[np.uint64]:
    """(max(1, characters - SHINGLE + 1),): 64-bit hashes of a text's passages; a shorter text is one passage."""
    codes = code_points("".join(text.split())).astype(np.uint64)
    places = max(1, len(codes) - SHINGLE + 1)
    hashes = np.zeros(places, dtype=np.uint64)
    for shift in range(min(SHINGLE, len(codes))):  # odd, so that no character is lost in the product
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[shift : shift + places]
    return hashes


# ----------------------------------------------------------------------------------------------------------- the search


def rows_of_a_band(threshold: float, values: int) -> int:
    """The most values a band may have for two documents at the threshold to share a bucket nearly always: 6 at 0.8."""

    def found(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (values // rows)

    return max((rows for rows in range(1, LARGEST_BAND + 1) if found(rows) >= _SURE), default=1)


def least_agreement(threshold: float, values: int) -> int:
    """In how many values two sketches agree at the threshold, accidents included."""
    return math.ceil(values * (threshold + (1 - threshold) * _ACCIDENT) - 1e-9)


def near_copies(found: Sketches, left_out: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """(D,): whether each document is similar to an earlier one; `left_out` (D,) takes no part.

    About 3 us a document.
    """
    values = found.shape[1]
    rows, least = rows_of_a_band(threshold, values), least_agreement(threshold, values)
    near = np.zeros(len(found), dtype=np.bool_)
    for first in range(0, values - rows + 1, rows):
        staying = np.flatnonzero(~(near | left_out))
        members, buckets = _buckets(staying, _band_keys(found, staying, first, rows))
        near[_later_in_buckets(found, members, buckets, least)] = True
    return near


def _band_keys(found: Sketches, staying: NDArray[np.int64], first: int, rows: int) -> NDArray[np.uint64]:
    """(S,): the values of one band as an integer."""
    padded = np.zeros((len(staying), LARGEST_BAND), dtype=np.uint8)
    padded[:, :rows] = found[staying, first : first + rows]
    return padded.view(np.uint64).reshape(-1)


def _buckets(documents: NDArray[np.int64], keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The documents that share their key, bucket by bucket and in order, and the number of each one's bucket."""
    order = np.argsort(keys, kind="stable")
    ordered, begins = keys[order], np.ones(len(keys), dtype=np.bool_)
    begins[1:] = ordered[1:] != ordered[:-1]
    shared = ~(begins & np.append(begins[1:], True))
    return documents[order[shared]], np.cumsum(begins, dtype=np.int64)[shared]


def _later_in_buckets(
    found: Sketches, members: NDArray[np.int64], buckets: NDArray[np.int64], least: int
) -> NDArray[np.int64]:
    """The members that are similar to an earlier one of their bucket."""
    later: list[NDArray[np.int64]] = []
    for _ in range(LEADERS):
        if not len(members):
            break
        begins = np.diff(buckets, prepend=-1) != 0
        leaders = members[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
        similar = _agreement(found, members, leaders) >= least
        later.append(members[similar & ~begins])
        members, buckets = members[~similar], buckets[~similar]  # a leader is similar to itself
    return np.concatenate([np.zeros(0, dtype=np.int64), *later])


def _agreement(found: Sketches, some: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,): in how many values two documents agree; in parts, so that memory stays under 32 MB."""
    counts = np.empty(len(some), dtype=np.int64)
    for start in range(0, len(some), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        counts[part] = np.count_nonzero(found[some[part]] == found[others[part]], axis=1)
    return counts
