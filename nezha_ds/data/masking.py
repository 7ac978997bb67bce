"""Which tokens are predicted, and what stands in their places, for all rows at once.

B samples, L length, P places for predictions. A unit is what is masked as a whole: a word, a single token, or a group
of consecutive words (n-gram, span). In each row the units are gone through in the order of their hash; a word that
would overflow what is left of the budget is skipped, a group is cut behind the last word that fits. The budget is
rate x text tokens, rounded up or down at random so that its mean is right, and at least 1. What is chosen becomes
[MASK] (80%), random ids (10%) or stays (10%): each token, each word or each unit by a draw of its own. A pure function
of the rows and their keys; 20 ns a token on one core, 33 for groups.

Groups tile the row: their lengths are independent draws, added up, so every word lies in one group and no chance is
lost on overlaps. Spans are SpanBERT's (arXiv 1907.10529): geometric lengths with p = 0.2, at most 10 words, 3.8 on
average. Cut where a document, a segment or the budget ends, they have 3.5 words at length 512 and 2.9 at 128, where a
row holds four of them.

What a budget skips are mostly long words. In the shipped text, one of two tokens is chosen 0.85 times as often as one
of one at length 128, one of four 0.73 times; 0.96 and 0.94 times at 512. A word longer than the budget is never
predicted: beyond 18 tokens at 128, a web address, not a word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nezha_ds.batch import IGNORE
from nezha_ds.data.collate import Flags, Rows
from nezha_ds.data.randomness import U64, Purpose, below, draws, uniform
from nezha_ds.data.settings import MaskingSettings

COLUMNS = 16
"""Units of each row that are gone through at a time: rows are mostly full after 15 words at L = 128, 60 at 512."""
SPAN_WEIGHTS = tuple(0.8**words for words in range(10))
"""How likely spans of 1, 2, ... 10 words are, as each other's multiples: the geometric distribution with p = 0.2."""
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
    """(B, LONGEST_WORD + 1): how many words (of `character`: tokens) of each length were chosen."""
    boundaries: NDArray[np.int64] | None = None
    """(B, P, 2): for spans, the positions beside each prediction's run of chosen tokens, left and right; else 0."""


def mask(
    rows: Rows, keys: U64, settings: MaskingSettings, predictions: int, mask_id: int, random_ids: NDArray[np.int64]
) -> Masked:
    """Choose and replace. `keys` (B,) come from `sample_keys`, `predictions` is P, `random_ids` what may replace."""
    units, grouped = UNITS[settings.method](rows, keys, settings), settings.method in GROUPED
    budget = budgets(np.count_nonzero(rows.text, axis=1), keys, settings.rate, predictions)
    first, size = choose(units, rows.text, keys, budget, rows.words if grouped else None)
    places = _expand(first, size)
    row, position = np.divmod(places, rows.ids.shape[1])

    counts = np.bincount(row, minlength=len(keys))
    slots = row * predictions + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = np.zeros((len(keys), predictions), np.int64)
    positions.reshape(-1)[slots] = position
    labels = np.full((len(keys), predictions), IGNORE, np.int64)
    labels.reshape(-1)[slots] = originals = rows.ids.reshape(-1)[places]

    boundaries = None
    if settings.method == "span":
        boundaries = np.zeros((len(keys), predictions, 2), np.int64)
        boundaries.reshape(-1, 2)[slots] = _boundaries(places) - (places - position)[:, None]

    ids = rows.ids.astype(np.int64)
    together = {
        "token": lambda: places,
        "word": lambda: _latest(np.flatnonzero(rows.words), places),
        "span": lambda: np.repeat(first, size),
    }
    drawn = position - places + together[settings.replaced_together]()
    ids.reshape(-1)[places] = _replace(originals, keys[row], position, drawn, settings, mask_id, random_ids)
    if grouped:
        # Whole words were chosen, so one ends where the next begins.
        begins = np.flatnonzero(rows.words.reshape(-1)[places])
        first, size = places[begins], np.diff(begins, append=len(places))
    return Masked(ids, positions, labels, _word_lengths(first // rows.ids.shape[1], size, len(keys)), boundaries)


# ------------------------------------------------------------------------------------------------------------ the units


def whole_words(rows: Rows, keys: U64, settings: MaskingSettings) -> Flags:
    """(B, L): where a unit that is masked as a whole begins; here a word."""
    return rows.words


def characters(rows: Rows, keys: U64, settings: MaskingSettings) -> Flags:
    """(B, L): every text token is a unit of its own."""
    return rows.text


def word_ngrams(rows: Rows, keys: U64, settings: MaskingSettings) -> Flags:
    """(B, L): where groups of 1, 2, ... words begin, as likely as `ngram_weights` say."""
    return groups(rows, keys, settings.ngram_weights)


def spans(rows: Rows, keys: U64, settings: MaskingSettings) -> Flags:
    """(B, L): where SpanBERT's spans begin."""
    return groups(rows, keys, SPAN_WEIGHTS)


UNITS: dict[str, Callable[[Rows, U64, MaskingSettings], Flags]] = {
    "whole-word": whole_words,
    "character": characters,
    "n-gram": word_ngrams,
    "span": spans,
}
GROUPED = frozenset({"n-gram", "span"})
"""Methods whose units are groups of words."""


def groups(rows: Rows, keys: U64, weights: Sequence[float]) -> Flags:
    """(B, L): where groups of consecutive words begin; one of k + 1 words has the k-th weight. W words of a row."""
    counts = np.count_nonzero(rows.words, axis=1)
    shares = np.asarray(weights) / np.sum(weights)
    steps = np.cumsum(shares)[:-1]
    # Mostly enough at once: a row of W words has W / (words of a group) groups, and a few more.
    more = int(counts.max() / (shares @ np.arange(1, len(shares) + 1))) + 8
    # (B, groups + 1): the word at which each group begins, and so the one before it ends; beyond the last word at last.
    begins = np.zeros((len(keys), 1), np.int64)
    while np.any(begins[:, -1] < counts):
        columns = np.arange(more, dtype=np.uint64) + np.uint64(begins.shape[1] - 1)
        numbers = uniform(draws(keys[:, None], columns, Purpose.GROUP))
        sizes = np.ones(numbers.shape, np.int16)
        for step in steps:
            sizes += numbers >= step
        begins = np.concatenate([begins, begins[:, -1:] + np.cumsum(sizes, axis=1)], axis=1)
    own = begins < counts[:, None]
    units = np.zeros(rows.words.shape, np.bool_)
    begins += (np.cumsum(counts) - counts)[:, None]
    units.reshape(-1)[np.flatnonzero(rows.words)[begins[own]]] = True
    # Behind a [SEP] a group begins anew.
    units[:, 1:] |= rows.words[:, 1:] & ~rows.text[:, :-1]
    return units


# ----------------------------------------------------------------------------------------------------------- the choice


def budgets(tokens: NDArray[np.int64], keys: U64, rate: float, predictions: int) -> Sizes:
    """(B,): how many of each row's text tokens may be predicted."""
    wanted = tokens * rate + uniform(draws(keys, np.zeros(1, np.uint64), Purpose.BUDGET))
    return np.clip(wanted, 1, predictions).astype(np.int16)


def choose(
    units: Flags, text: Flags, keys: U64, budget: Sizes, words: Flags | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The units to predict: (U,) first tokens as flat indices of (B, L), ascending, and (U,) sizes.

    With `words`, a unit that does not fit is cut where one of them begins; without, it is skipped.
    """
    length = units.shape[1]
    order, sizes = _random_order(units, keys), _sizes(units, text)
    bounds = None if words is None else np.flatnonzero(words | ~text)
    # The rows whose budget is not used up, and what is left of it.
    rows, left = np.arange(len(units)), budget
    firsts: list[NDArray[np.int64]] = []
    taken: list[Sizes] = []
    for column in range(0, length, COLUMNS):
        first = (rows * length)[:, None] + order[rows, column : column + COLUMNS]
        first = np.ascontiguousarray(first.T)
        size = sizes[first]
        for begin, unit in zip(first, size, strict=True):
            if bounds is None:
                unit *= unit <= left
            else:
                long = np.flatnonzero(unit > left)
                unit[long] = _latest(bounds, begin[long] + left[long]) - begin[long]
            left = left - unit
        chosen = size > 0
        firsts.append(first[chosen])
        taken.append(size[chosen])
        # What stands behind the last unit of a row is L - 1.
        going = (left > 0) & (first[-1] - rows * length < length - 1)
        rows, left = rows[going], left[going]
        if not len(rows):
            break
    first, size = np.concatenate(firsts), np.concatenate(taken)
    ascending = np.argsort(first)
    return first[ascending], size[ascending].astype(np.int64)


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
    # All bits where there is no unit, without a branch.
    hashes |= units.astype(np.uint32) - np.uint32(1)
    hashes.sort(axis=1)
    hashes &= low
    return np.minimum(hashes, np.uint32(length - 1))


def _sizes(units: Flags, text: Flags) -> Sizes:
    """(B x L,): the tokens of the unit that begins at each place, up to the next unit or special token; else 0."""
    bounds = np.flatnonzero(units | ~text)
    sizes = np.zeros(units.size, np.int16)
    sizes[bounds[:-1]] = np.diff(bounds)
    sizes *= units.reshape(-1)
    return sizes


def _latest(begins: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,): the last of the ascending `begins` at or before each place."""
    return begins[np.searchsorted(begins, places, side="right") - 1]


def _expand(first: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,): every token of the chosen units as a flat index, ascending as the units are."""
    ends = np.cumsum(size)
    return np.repeat(first - (ends - size), size) + np.arange(int(size.sum()))


def _boundaries(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M, 2): the flat indices beside the run of ascending places that each one lies in.

    Spans that touch count as one, as in SpanBERT's code, so a boundary is never predicted itself. It may be [CLS] or
    [SEP], which SpanBERT leaves out: they are there at both ends of a text, and their states are as good as others.
    """
    begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    ends = np.flatnonzero(np.diff(places, append=-2) != 1) + 1
    runs = np.stack([places[begins] - 1, places[ends - 1] + 1], axis=1)
    return np.repeat(runs, ends - begins, axis=0)


def _word_lengths(row: NDArray[np.int64], size: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count, LONGEST_WORD + 1): how many words of each size there are in each row."""
    bins = LONGEST_WORD + 1
    return np.bincount(row * bins + np.minimum(size, LONGEST_WORD), minlength=count * bins).reshape(count, bins)


def _replace(
    originals: NDArray[np.int32],
    keys: U64,
    positions: NDArray[np.int64],
    drawn: NDArray[np.int64],
    settings: MaskingSettings,
    mask_id: int,
    random_ids: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(M,): what the model sees instead of the chosen tokens; what is `drawn` at one place is done alike."""
    at = positions.astype(np.uint64)
    action = uniform(draws(keys, drawn.astype(np.uint64), Purpose.ACTION))
    seen = np.where(action < settings.mask_share, mask_id, originals).astype(np.int64)
    random = (action >= settings.mask_share) & (action < settings.mask_share + settings.random_share)
    seen[random] = random_ids[below(draws(keys[random], at[random], Purpose.REPLACEMENT), len(random_ids))]
    return seen
