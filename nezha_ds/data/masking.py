"""Which tokens are predicted, and what stands in their places: whole words or characters, for all rows at once.

B samples, L length, P places for predictions. In each row the words are gone through in the order of their hash; a word
that would overflow what is left of the budget is skipped. The budget is rate x text tokens, rounded up or down at
random so that its mean is right, and at least 1. Each chosen token, also inside a word, becomes [MASK] (80%), a random
id (10%) or stays (10%). A pure function of the rows and their keys; 25 ns a token on one core.

The skipping costs long words a little: one of four tokens is chosen 0.65 times as often as one of one at length 128,
0.8 times at 512. A word longer than the budget is never predicted: beyond 18 tokens at 128, a web address, not a word.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nezha_ds.batch import IGNORE
from nezha_ds.data.collate import Flags, Rows
from nezha_ds.data.randomness import U64, Purpose, below, draws, uniform
from nezha_ds.data.settings import MaskingSettings

COLUMNS = 32
"""Words of each row that are gone through at a time: rows are mostly full after 15 at L = 128, 60 at 512."""
LONGEST_WORD = 15
"""Word lengths are counted from 1 to this; the last count holds longer ones too."""

Sizes = NDArray[np.int16]


@dataclass(frozen=True)
class Masked:
    """B rows with their predictions."""

    ids: NDArray[np.int64]
    """(B, L): what the model sees."""
    positions: NDArray[np.int64]
    """(B, P): ascending, then 0."""
    labels: NDArray[np.int64]
    """(B, P): the original ids, then IGNORE."""
    word_lengths: NDArray[np.int64]
    """(LONGEST_WORD + 1,): how many words of each length were chosen in all rows."""


def mask(
    rows: Rows, keys: U64, settings: MaskingSettings, predictions: int, mask_id: int, random_ids: NDArray[np.int64]
) -> Masked:
    """Choose and replace. `keys` (B,) come from `sample_keys`, `predictions` is P, `random_ids` what may replace."""
    tokens = np.count_nonzero(rows.text, axis=1)
    budget = budgets(tokens, keys, settings.rate, predictions)
    first, size = choose(UNITS[settings.method](rows), rows.text, keys, budget)
    places = _expand(first, size, rows.ids.size)
    row, position = np.divmod(places, rows.ids.shape[1])

    counts = np.bincount(row, minlength=len(keys))
    slots = row * predictions + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = np.zeros((len(keys), predictions), np.int64)
    positions.reshape(-1)[slots] = position
    labels = np.full((len(keys), predictions), IGNORE, np.int64)
    labels.reshape(-1)[slots] = originals = rows.ids.reshape(-1)[places]

    ids = rows.ids.astype(np.int64)
    ids.reshape(-1)[places] = _replace(originals, keys[row], position, settings, mask_id, random_ids)
    lengths = np.bincount(np.minimum(size, LONGEST_WORD), minlength=LONGEST_WORD + 1)
    return Masked(ids, positions, labels, lengths)


def whole_words(rows: Rows) -> Flags:
    """(B, L): where a unit that is masked as a whole begins; here a word."""
    return rows.words


def characters(rows: Rows) -> Flags:
    """(B, L): every text token is a unit of its own."""
    return rows.text


UNITS: dict[str, Callable[[Rows], Flags]] = {"whole-word": whole_words, "character": characters}


def budgets(tokens: NDArray[np.int64], keys: U64, rate: float, predictions: int) -> Sizes:
    """(B,): how many of each row's text tokens may be predicted."""
    wanted = tokens * rate + uniform(draws(keys, np.zeros(1, np.uint64), Purpose.BUDGET))
    return np.clip(wanted, 1, predictions).astype(np.int16)


def choose(units: Flags, text: Flags, keys: U64, budget: Sizes) -> tuple[NDArray[np.int64], Sizes]:
    """The units to predict: (U,) first tokens as flat indices of (B, L), in no order, and (U,) sizes."""
    length = units.shape[1]
    order, sizes = _random_order(units, keys), _sizes(units, text)
    base = np.arange(len(units)) * length
    left = budget.copy()
    firsts: list[NDArray[np.int64]] = []
    taken: list[Sizes] = []
    for column in range(0, length, COLUMNS):
        first = base + order[:, column : column + COLUMNS].T
        size = sizes[first]
        for unit in size:
            unit *= unit <= left
            left -= unit
        chosen = size > 0
        firsts.append(first[chosen])
        taken.append(size[chosen])
        if not left.any():
            break
    return np.concatenate(firsts), np.concatenate(taken)


def _random_order(units: Flags, keys: U64) -> NDArray[np.uint32]:
    """(B, L): the positions of each row's units in the order of their hash, then L - 1, which is never a unit.

    Hash and position share 32 bits, which sort in 1 ns a token where an argsort takes 30. At L = 512 the hash has 23
    bits: two words of a sample tie once in 200 samples, and then keep the order of the text.
    """
    length = units.shape[1]
    bits = (length - 1).bit_length()
    positions = np.arange(length, dtype=np.uint64)
    hashes = (draws(keys[:, None], positions, Purpose.WORD) >> np.uint64(32)).astype(np.uint32)
    low = np.uint32((1 << bits) - 1)
    hashes &= ~low
    hashes |= positions.astype(np.uint32)
    hashes[~units] = ~low | np.uint32(length - 1)
    hashes.sort(axis=1)
    hashes &= low
    return hashes


def _sizes(units: Flags, text: Flags) -> Sizes:
    """(B x L,): the tokens of the unit that begins at each place, up to the next unit or special token; else 0."""
    bounds = np.flatnonzero(units | ~text)
    sizes = np.zeros(units.size, np.int16)
    sizes[bounds[:-1]] = np.diff(bounds)
    sizes *= units.reshape(-1)
    return sizes


def _expand(first: NDArray[np.int64], size: Sizes, places: int) -> NDArray[np.int64]:
    """(M,): every token of the chosen units as a flat index, ascending."""
    ends = np.cumsum(size, dtype=np.int64)
    chosen = np.zeros(places, np.bool_)
    chosen[np.repeat(first - (ends - size), size) + np.arange(int(size.sum()))] = True
    return np.flatnonzero(chosen)


def _replace(
    originals: NDArray[np.int32],
    keys: U64,
    positions: NDArray[np.int64],
    settings: MaskingSettings,
    mask_id: int,
    random_ids: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(M,): what the model sees instead of the chosen tokens."""
    at = positions.astype(np.uint64)
    action = uniform(draws(keys, at, Purpose.ACTION))
    seen = np.where(action < settings.mask_share, mask_id, originals).astype(np.int64)
    random = (action >= settings.mask_share) & (action < settings.mask_share + settings.random_share)
    seen[random] = random_ids[below(draws(keys[random], at[random], Purpose.REPLACEMENT), len(random_ids))]
    return seen
