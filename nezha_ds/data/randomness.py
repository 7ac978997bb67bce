"""Random numbers without a generator: each is a hash of (seed, epoch, sample, position, purpose).

So a mask can be drawn anywhere, in any order, on any number of ranks, and after any restart, and is always the same.
The hash is SplitMix64: a counter times an odd constant through a 64-bit finaliser (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014; the constants are Stafford's variant 13). Used as a counter
in the sense of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. About 3 ns a number.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MANTISSA = np.uint64(11)
_HALF = np.uint64(32)


class Purpose(IntEnum):
    """What a number is for; two purposes never share one. Values are part of what a seed means: add, never renumber."""

    BUDGET = 0
    WORD = 1
    ACTION = 2
    REPLACEMENT = 3
    SHORT = 4
    TARGET = 5
    CUT = 6
    NEXT = 7
    OTHER = 8
    GROUP = 9
    SWAP = 10


_PURPOSES = np.uint64(16)
"""Room for purposes at each position."""


def mix(x: U64) -> U64:
    """SplitMix64's finaliser, a bijection of 64 bits in which each bit of the input flips half the output."""
    z = x >> np.uint64(30)
    z ^= x
    z *= _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    return z


def fold(key: U64, value: U64) -> U64:
    """A key for `value` under `key`: different for every value."""
    return mix(key + (value + np.uint64(1)) * _GOLDEN)


def key_of(*values: int) -> U64:
    """One key, shape (1,), from a few whole numbers such as (seed, epoch)."""
    key = np.zeros(1, np.uint64)
    for value in values:
        key = fold(key, np.array([value & 0xFFFF_FFFF_FFFF_FFFF], np.uint64))
    return key


def sample_keys(seed: int, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> U64:
    """(B,): the key of each sample in its epoch, from which all its numbers come."""
    return fold(fold(key_of(seed), epochs.astype(np.uint64)), samples.astype(np.uint64))


def draws(keys: U64, positions: U64, purpose: Purpose) -> U64:
    """Uniform 64-bit numbers for positions under keys; the two shapes broadcast."""
    counters = positions * _PURPOSES + np.uint64(purpose + 1)
    return mix(keys + counters * _GOLDEN)


def uniform(numbers: U64) -> NDArray[np.float64]:
    """Draws as numbers in [0, 1), from their upper 53 bits."""
    return (numbers >> _MANTISSA).astype(np.float64) * 2.0**-53


def below(numbers: U64, bound: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Draws as whole numbers in [0, bound), bound < 2**32: a multiplication, biased by less than bound / 2**32."""
    return (((numbers >> _HALF) * np.asarray(bound, np.uint64)) >> _HALF).astype(np.int64)
