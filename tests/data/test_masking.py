"""Masks equal a plain reference, have the right rates, and never break a word."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.batch import IGNORE
from nezha_ds.data.collate import Rows, gather
from nezha_ds.data.dataset import Slices
from nezha_ds.data.formats import full_sentences
from nezha_ds.data.masking import LONGEST_WORD, mask
from nezha_ds.data.randomness import Purpose, draws, sample_keys
from nezha_ds.data.settings import MaskingSettings
from tests.data.folders import RANDOM_IDS, SPECIAL, documents, random_columns, to_columns


def make_rows(columns, length: int) -> Rows:
    records = full_sentences(columns, length)
    zeros = np.zeros(len(records), np.int64)
    slices = Slices(zeros, records["start"].astype(np.int64), records["end"].astype(np.int64))
    return gather(lambda _: columns, slices, length, SPECIAL)


def run(rows: Rows, masking: MaskingSettings, epoch: int = 0, seed: int = 7):
    count, length = rows.ids.shape
    keys = sample_keys(seed, np.full(count, epoch), np.arange(count))
    return keys, mask(rows, keys, masking, masking.predictions(length), SPECIAL.mask, RANDOM_IDS)


def number(key: np.uint64, position: int, purpose: Purpose) -> int:
    return int(draws(np.array([key]), np.array([position], np.uint64), purpose)[0])


def slow_mask(ids, text, words, key, masking: MaskingSettings) -> tuple[list[int], list[int]]:
    """One row, word by word: the ids that the model sees, and the positions that it predicts."""
    length = len(ids)
    starts = [at for at in range(length) if (words if masking.method == "whole-word" else text)[at]]
    units = []
    for start in starts:
        end = start + 1
        while text[end] and end not in starts:
            end += 1
        units.append(range(start, end))
    bits = (length - 1).bit_length()
    units.sort(key=lambda unit: (number(key, unit[0], Purpose.WORD) >> (32 + bits), unit[0]))
    budget = int(sum(text) * masking.rate + (number(key, 0, Purpose.BUDGET) >> 11) * 2**-53)
    left = min(max(budget, 1), masking.predictions(length))
    seen, positions = list(ids), []
    for unit in units:
        if len(unit) <= left:
            left -= len(unit)
            positions += unit
    for at in positions:
        action = (number(key, at, Purpose.ACTION) >> 11) * 2**-53
        if action < masking.mask_share:
            seen[at] = SPECIAL.mask
        elif action < masking.mask_share + masking.random_share:
            pick = (number(key, at, Purpose.REPLACEMENT) >> 32) * len(RANDOM_IDS) >> 32
            seen[at] = int(RANDOM_IDS[pick])
    return seen, sorted(positions)


maskings = st.builds(
    MaskingSettings,
    method=st.sampled_from(["whole-word", "character"]),
    rate=st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    mask_share=st.sampled_from([0.0, 0.5, 0.8]),
    random_share=st.sampled_from([0.0, 0.1, 0.2]),
    max_predictions=st.sampled_from([None, 1, 5]),
)


@settings(deadline=None, max_examples=60)
@given(documents, st.sampled_from([16, 50, 64, 128]), maskings)
def test_equals_the_plain_reference(documents, length, masking):
    rows = make_rows(to_columns(documents), length)
    keys, masked = run(rows, masking)
    for at, key in enumerate(keys):
        ids, text, words = rows.ids[at].tolist(), rows.text[at].tolist(), rows.words[at].tolist()
        seen, positions = slow_mask(ids, text, words, key, masking)
        missing = masking.predictions(length) - len(positions)
        assert masked.ids[at].tolist() == seen
        assert masked.positions[at].tolist() == positions + [0] * missing
        assert masked.labels[at].tolist() == [ids[place] for place in positions] + [IGNORE] * missing


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(random_columns(1, 20_000), 128)


def chosen(rows: Rows, masked) -> np.ndarray:
    """(B, L): which places are predicted."""
    flags = np.zeros(rows.ids.shape, np.bool_)
    row, slot = np.nonzero(masked.labels != IGNORE)
    flags[row, masked.positions[row, slot]] = True
    return flags


@pytest.mark.parametrize("method", ["whole-word", "character"])
@pytest.mark.parametrize("rate", [0.15, 0.1, 0.4])
def test_the_mean_rate_is_the_one_asked_for(rows, method, rate):
    _, masked = run(rows, MaskingSettings(method=method, rate=rate))
    achieved = np.count_nonzero(masked.labels != IGNORE) / np.count_nonzero(rows.text)
    assert abs(achieved - rate) < 0.002


def test_no_word_is_half_masked_and_nothing_but_text_is(rows):
    _, masked = run(rows, MaskingSettings())
    flags = chosen(rows, masked)
    assert not np.any(flags & ~rows.text)
    # A token that goes on with the word of the one before it shares its fate.
    inside = rows.text[:, 1:] & ~rows.words[:, 1:]
    assert np.array_equal(flags[:, 1:][inside], flags[:, :-1][inside])
    assert masked.word_lengths @ np.arange(LONGEST_WORD + 1) == np.count_nonzero(flags)


def test_every_word_of_a_length_is_equally_likely(rows):
    """Over 200 epochs of 50 full rows, the times that each word of two tokens is chosen are binomial."""
    full = np.flatnonzero(rows.lengths > 120)[:50]
    some = Rows(rows.ids[full], rows.text[full], rows.words[full], rows.lengths[full])
    times = sum(chosen(some, run(some, MaskingSettings(), epoch)[1]).astype(int) for epoch in range(200))
    ends = np.roll(some.words | ~some.text, -2, axis=1) & ~np.roll(some.words | ~some.text, -1, axis=1)
    pairs = times[some.words & ends]
    expected = pairs.mean()
    assert len(pairs) > 1000
    # Variance of a binomial, within its own error: 5 x sqrt(2 / 1,000) = 22%. Rows differ a little in their rates.
    assert abs(pairs.var() / (expected * (1 - expected / 200)) - 1) < 0.22
    halves = times[:, 1:61].sum() / some.text[:, 1:61].sum(), times[:, 61:121].sum() / some.text[:, 61:121].sum()
    assert abs(halves[0] / halves[1] - 1) < 0.02


def test_eighty_ten_ten(rows):
    _, masked = run(rows, MaskingSettings())
    flags = chosen(rows, masked)
    seen, original = masked.ids[flags], rows.ids[flags]
    total = len(seen)
    counts = np.array([np.sum(seen == SPECIAL.mask), np.sum((seen != SPECIAL.mask) & (seen != original))])
    # One random id in 800 is the original again.
    expected = total * np.array([0.8, 0.1 * (1 - 1 / len(RANDOM_IDS))])
    counts, expected = np.append(counts, total - counts.sum()), np.append(expected, total - expected.sum())
    assert np.sum((counts - expected) ** 2 / expected) < 20  # 2 degrees of freedom: p = 5e-5
    random = seen[(seen != SPECIAL.mask) & (seen != original)]
    times = np.bincount(random - RANDOM_IDS[0], minlength=len(RANDOM_IDS))
    mean = len(random) / len(RANDOM_IDS)
    assert np.sum((times - mean) ** 2 / mean) < 799 + 5 * 40


def test_actions_are_drawn_inside_words_too(rows):
    """Both tokens of a masked pair are [MASK] in 64% of cases, not in 80%."""
    _, masked = run(rows, MaskingSettings())
    flags = chosen(rows, masked)
    second = flags[:, 1:] & rows.text[:, 1:] & ~rows.words[:, 1:]
    both = (masked.ids[:, 1:] == SPECIAL.mask) & (masked.ids[:, :-1] == SPECIAL.mask)
    assert abs(both[second].mean() - 0.64) < 0.02


def test_masks_are_pure_and_new_in_every_epoch(rows):
    _, first = run(rows, MaskingSettings())
    _, second = run(rows, MaskingSettings(), epoch=1)
    part = Rows(rows.ids[5:9], rows.text[5:9], rows.words[5:9], rows.lengths[5:9])
    keys = sample_keys(7, np.zeros(4, np.int64), np.arange(5, 9))
    alone = mask(part, keys, MaskingSettings(), 20, SPECIAL.mask, RANDOM_IDS)
    assert np.array_equal(alone.ids, first.ids[5:9])
    assert np.array_equal(alone.labels, first.labels[5:9])
    both = chosen(rows, first) & chosen(rows, second)
    assert abs(both.sum() / rows.text.sum() - 0.15**2) < 0.003


def test_a_word_longer_than_the_budget_is_left_alone():
    rows = make_rows(to_columns([[[list(range(200, 240))]]]), 128)
    _, masked = run(rows, MaskingSettings())
    assert np.all(masked.labels == IGNORE)
    assert np.array_equal(masked.ids, rows.ids)
