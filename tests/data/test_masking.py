"""Masks equal a plain reference, have the right rates, and never break a word."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.batch import IGNORE
from nezha_ds.data.collate import Rows, gather
from nezha_ds.data.dataset import Slices
from nezha_ds.data.formats import full_sentences
from nezha_ds.data.masking import LONGEST_WORD, SPAN_WEIGHTS, UNITS, groups, mask
from nezha_ds.data.randomness import Purpose, draws, sample_keys
from nezha_ds.data.settings import MaskingSettings
from tests.data.folders import RANDOM_IDS, SPECIAL, documents, random_columns, to_columns

METHODS = ["whole-word", "character", "n-gram", "span"]


def make_rows(columns, length: int) -> Rows:
    records = full_sentences(columns, length)
    zeros = np.zeros(len(records), np.int64)
    slices = Slices(zeros, records["start"].astype(np.int64), records["end"].astype(np.int64))
    return gather(lambda _: columns, slices, length, SPECIAL)


def flags_of(rows: Rows, masking: MaskingSettings, keys) -> tuple[np.ndarray, np.ndarray]:
    """(B, L) twice: where what is replaced alike begins, and where it goes on, within words or units."""
    begins = {"token": rows.text, "word": rows.words, "span": UNITS[masking.method](rows, keys, masking)}
    return begins[masking.replaced_together], rows.text & ~begins[masking.replaced_together]


def run(rows: Rows, masking: MaskingSettings, epoch: int = 0, seed: int = 7):
    count, length = rows.ids.shape
    keys = sample_keys(seed, np.full(count, epoch), np.arange(count))
    return keys, mask(rows, keys, masking, masking.predictions(length), SPECIAL.mask, RANDOM_IDS)


def number(key: np.uint64, position: int, purpose: Purpose) -> int:
    return int(draws(np.array([key]), np.array([position], np.uint64), purpose)[0])


def uniform(key: np.uint64, position: int, purpose: Purpose) -> float:
    return (number(key, position, purpose) >> 11) * 2**-53


def slow_units(text, words, key, masking: MaskingSettings) -> list[list[list[int]]]:
    """What is masked as a whole, as words of positions."""
    units: list[list[list[int]]] = []
    word = group = count = 0
    for at in range(len(text)):
        if not text[at]:
            continue
        if masking.method == "character":
            units.append([[at]])
        elif not words[at]:
            units[-1][-1].append(at)
        elif masking.method == "whole-word":
            units.append([[at]])
        else:
            weights = np.array(SPAN_WEIGHTS if masking.method == "span" else masking.ngram_weights)
            if begins := word == count:
                steps = np.cumsum(weights)[:-1] / weights.sum()
                count += 1 + sum(uniform(key, group, Purpose.GROUP) >= step for step in steps)
                group += 1
            if begins or not text[at - 1]:
                units.append([])
            units[-1].append([at])
            word += 1
    return units


def slow_choice(text, words, key, masking: MaskingSettings) -> list[list[list[int]]]:
    """The units that are predicted, those that did not fit without their last words."""
    length, units, chosen = len(text), slow_units(text, words, key, masking), []
    bits = (length - 1).bit_length()
    units.sort(key=lambda unit: (number(key, unit[0][0], Purpose.WORD) >> (32 + bits), unit[0][0]))
    left = min(max(int(sum(text) * masking.rate + uniform(key, 0, Purpose.BUDGET)), 1), masking.predictions(length))
    for unit in units:
        fitting = []
        for word in unit:
            if len(word) > left:
                break
            left -= len(word)
            fitting.append(word)
        if fitting:
            chosen.append(fitting)
    return chosen


def slow_mask(ids, text, words, key, masking: MaskingSettings) -> tuple[list[int], list[int], list[list[int]]]:
    """One row, word by word: the ids that the model sees, the positions that it predicts, and what is beside them."""
    seen, positions = list(ids), []
    for unit in slow_choice(text, words, key, masking):
        for word in unit:
            for at in word:
                drawn = {"token": at, "word": word[0], "span": unit[0][0]}[masking.replaced_together]
                if masking.method == "character" and masking.replaced_together == "word":
                    drawn = max(start for start in range(at + 1) if words[start])
                positions.append(at)
                action = uniform(key, drawn, Purpose.ACTION)
                if action < masking.mask_share:
                    seen[at] = SPECIAL.mask
                elif action < masking.mask_share + masking.random_share:
                    pick = (number(key, at, Purpose.REPLACEMENT) >> 32) * len(RANDOM_IDS) >> 32
                    seen[at] = int(RANDOM_IDS[pick])
    beside = []
    for at in sorted(positions):
        left = next(place for place in range(at, -1, -1) if place not in positions)
        beside.append([left, next(place for place in range(at, len(ids)) if place not in positions)])
    return seen, sorted(positions), beside


maskings = st.builds(
    MaskingSettings,
    method=st.sampled_from(METHODS),
    replace_by=st.sampled_from([None, "token", "word", "span"]),
    ngram_weights=st.sampled_from([(0.4, 0.3, 0.2, 0.1), (0.0, 1.0), (1.0,)]),
    rate=st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    mask_share=st.sampled_from([0.0, 0.5, 0.8]),
    random_share=st.sampled_from([0.0, 0.1, 0.2]),
    max_predictions=st.sampled_from([None, 1, 5]),
)


@settings(max_examples=120)
@given(documents, st.sampled_from([16, 50, 64, 128]), maskings)
def test_equals_the_plain_reference(documents, length, masking):
    rows = make_rows(to_columns(documents), length)
    keys, masked = run(rows, masking)
    for at, key in enumerate(keys):
        ids, text, words = rows.ids[at].tolist(), rows.text[at].tolist(), rows.words[at].tolist()
        seen, positions, beside = slow_mask(ids, text, words, key, masking)
        missing = masking.predictions(length) - len(positions)
        assert masked.ids[at].tolist() == seen
        assert masked.positions[at].tolist() == positions + [0] * missing
        assert masked.labels[at].tolist() == [ids[place] for place in positions] + [IGNORE] * missing
        if masking.method == "span":
            assert masked.boundaries is not None
            assert masked.boundaries[at].tolist() == beside + [[0, 0]] * missing
    assert (masked.boundaries is None) == (masking.method != "span")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(random_columns(1, 20_000), 128)


def chosen(rows: Rows, masked) -> np.ndarray:
    """(B, L): which places are predicted."""
    flags = np.zeros(rows.ids.shape, np.bool_)
    row, slot = np.nonzero(masked.labels != IGNORE)
    flags[row, masked.positions[row, slot]] = True
    return flags


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rate", "length"), [(0.15, 128), (0.1, 128), (0.4, 128), (0.15, 512), (0.15, 4096)])
def test_the_mean_rate_is_the_one_asked_for(rows, method, rate, length):
    rows = rows if length == 128 else make_rows(random_columns(1, 20_000), length)
    _, masked = run(rows, MaskingSettings(method=method, rate=rate))
    achieved = np.count_nonzero(masked.labels != IGNORE) / np.count_nonzero(rows.text)
    assert abs(achieved - rate) < 0.002


@pytest.mark.parametrize("method", ["whole-word", "n-gram", "span"])
def test_no_word_is_half_masked_and_nothing_but_text_is(rows, method):
    _, masked = run(rows, MaskingSettings(method=method))
    flags = chosen(rows, masked)
    assert not np.any(flags & ~rows.text)
    # A token that goes on with the word of the one before it shares its fate.
    inside = rows.text[:, 1:] & ~rows.words[:, 1:]
    assert np.array_equal(flags[:, 1:][inside], flags[:, :-1][inside])
    lengths = masked.word_lengths @ np.arange(LONGEST_WORD + 1)
    assert lengths.tolist() == np.count_nonzero(flags, axis=1).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_every_word_of_a_length_is_equally_likely(rows, method):
    """Over 200 epochs of 50 full rows, the times that each word of two tokens (its first) is chosen are binomial."""
    full = np.flatnonzero(rows.lengths > 120)[:50]
    some = Rows(rows.ids[full], rows.text[full], rows.words[full], rows.lengths[full])
    times = sum(chosen(some, run(some, MaskingSettings(method=method), epoch)[1]).astype(int) for epoch in range(200))
    ends = np.roll(some.words | ~some.text, -2, axis=1) & ~np.roll(some.words | ~some.text, -1, axis=1)
    pairs = times[some.words & ends]
    expected = pairs.mean()
    assert len(pairs) > 1000
    # Variance of a binomial, within its own error: 5 x sqrt(2 / 1,000) = 22%. Rows differ a little in their rates.
    assert abs(pairs.var() / (expected * (1 - expected / 200)) - 1) < 0.22
    halves = times[:, 1:61].sum() / some.text[:, 1:61].sum(), times[:, 61:121].sum() / some.text[:, 61:121].sum()
    assert abs(halves[0] / halves[1] - 1) < 0.02


DRAWS = [
    *((method, "token") for method in METHODS),
    *((method, "word") for method in METHODS),
    *((method, "span") for method in METHODS),
]


@pytest.mark.parametrize(("method", "replace_by"), DRAWS)
def test_eighty_ten_ten(rows, method, replace_by):
    """By one draw for each token, word or unit: counted once for each, alike inside it, and not alike across two."""
    masking = MaskingSettings(method=method, replace_by=replace_by)
    keys, masked = run(rows, masking)
    flags, (begins, goes_on) = chosen(rows, masked), flags_of(rows, masking, keys)
    hidden = masked.ids == SPECIAL.mask
    inside = (flags & goes_on)[:, 1:] & flags[:, :-1]
    assert np.array_equal(hidden[:, 1:][inside], hidden[:, :-1][inside])
    # Characters are chosen one by one, so a word's first may not be among them: any one of it tells its draw.
    first = flags & (begins | ~np.pad(flags, ((0, 0), (1, 0)))[:, :-1])
    other = ~hidden & (masked.ids != rows.ids)
    counts = np.array([np.sum(first & part) for part in (hidden, other, ~hidden & ~other)])
    # One random id in 800 is the original again.
    again = 0.1 / len(RANDOM_IDS)
    expected = first.sum() * np.array([0.8, 0.1 - again, 0.1 + again])
    assert np.sum((counts - expected) ** 2 / expected) < 20  # 2 degrees of freedom: p = 5e-5
    assert counts.sum() > 15_000
    # Neighbours that are drawn for apart are both [MASK] in 64% of cases, not in 80%.
    apart = (flags & begins)[:, 1:] & flags[:, :-1]
    both = (hidden[:, 1:] & hidden[:, :-1])[apart]
    assert len(both) > 500 and abs(both.mean() - 0.64) < 5 * 0.48 / np.sqrt(len(both))


@pytest.mark.parametrize("method", METHODS)
def test_random_replacements_are_drawn_from_all_that_may_replace_and_nothing_else(rows, method):
    _, masked = run(rows, MaskingSettings(method=method))
    flags = chosen(rows, masked)
    seen, original = masked.ids[flags], rows.ids[flags]
    random = seen[(seen != SPECIAL.mask) & (seen != original)]
    times = np.bincount(random - RANDOM_IDS[0], minlength=len(RANDOM_IDS))
    mean = len(random) / len(RANDOM_IDS)
    assert np.sum((times - mean) ** 2 / mean) < 799 + 5 * 40
    assert len(times) == len(RANDOM_IDS)
    assert np.array_equal(masked.ids[~flags], rows.ids[~flags])


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


# ------------------------------------------------------------------------------------------------------ groups of words


@pytest.mark.parametrize("weights", [SPAN_WEIGHTS, (0.4, 0.3, 0.2, 0.1), (0.0, 3.0, 0.0, 1.0), (1.0,)])
def test_groups_are_as_long_as_the_weights_say(weights):
    text = np.ones((100, 2002), np.bool_)
    text[:, [0, -1]] = False
    rows = Rows(np.zeros(text.shape, np.int32), text, text, np.full(100, 2002))
    units = groups(rows, sample_keys(7, np.zeros(100, np.int64), np.arange(100)), weights)
    sizes = np.concatenate([np.diff(np.flatnonzero(row)) for row in units])
    times, expected = np.bincount(sizes, minlength=len(weights) + 1)[1:], np.array(weights) / sum(weights) * len(sizes)
    assert not times[expected == 0].any()
    times, expected = times[expected > 0], expected[expected > 0]
    freedom = len(times) - 1
    assert np.sum((times - expected) ** 2 / expected) <= freedom + 5 * np.sqrt(2 * freedom)
    # And one does not tell the next: the deviation of a correlation by chance is 1 / sqrt(n).
    if freedom:
        assert abs(np.corrcoef(sizes[1:], sizes[:-1])[0, 1]) < 5 / np.sqrt(len(sizes))
    if weights == SPAN_WEIGHTS:
        assert abs(sizes.mean() - 3.8) < 0.05  # SpanBERT, section 3.1


def test_a_group_ends_where_a_document_a_segment_or_the_text_ends(rows):
    keys = sample_keys(7, np.zeros(len(rows.ids), np.int64), np.arange(len(rows.ids)))
    units = groups(rows, keys, (0.0, 0.0, 1.0))
    behind = rows.text[:, 1:] & ~rows.text[:, :-1]
    assert units[:, 1:][behind].all()
    assert np.count_nonzero(behind) > len(rows.ids) + 100
    assert not np.any(units & ~rows.words)


def test_chosen_spans_are_spanberts_but_for_those_that_the_budget_cuts():
    """At 512 a budget of 77 tokens holds 13 spans and cuts the last: 3.5 words on average, 4.1 in runs of spans."""
    rows = make_rows(random_columns(1, 20_000), 512)
    _, masked = run(rows, MaskingSettings(method="span"))
    assert masked.boundaries is not None
    real = masked.labels != IGNORE
    runs, flags, begins = masked.boundaries[real], chosen(rows, masked), masked.boundaries[..., 0] + 1
    row, slot = np.nonzero(real & (masked.positions == begins))
    words = np.cumsum(rows.words, axis=1)
    ends = masked.boundaries[row, slot, 1] - 1
    lengths = words[row, ends] - words[row, begins[row, slot]] + 1
    assert np.all(~flags[np.nonzero(real)[0], runs[:, 0]] & ~flags[np.nonzero(real)[0], runs[:, 1]])
    assert abs(lengths.mean() - 4.1) < 0.1


def test_rows_without_text_have_no_spans():
    rows = gather(lambda _: random_columns(0, 10), Slices(*np.zeros((3, 4), np.int64)), 64, SPECIAL)
    _, masked = run(rows, MaskingSettings(method="span"))
    assert np.all(masked.labels == IGNORE)
    assert masked.boundaries is not None
    assert not masked.boundaries.any()
