"""The masks that `inspect` shows are the masks that training uses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.batch import IGNORE
from nezha_ds.data.dataset import open_dataset
from nezha_ds.data.pipeline import Pipeline
from nezha_ds.data.preview import masked_positions
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.shards import unpack_words
from tests.data import folders

LENGTH = 128


@pytest.mark.parametrize("method", ["whole-word", "character", "span"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_preview_is_what_masking_does_to_the_same_sample(tmp_path, method, seed):
    columns = folders.random_columns(seed=5, sentences=400)
    one_document = np.array([0, len(columns.tokens)])
    columns = type(columns)(columns.tokens, columns.word_bits, one_document, columns.sentences)
    folders.write_folder(tmp_path, [columns])
    dataset, _ = open_dataset(DataSettings(shards=str(tmp_path), length=LENGTH), "train")
    masking = MaskingSettings(method=method)
    pipeline = Pipeline(dataset, masking, LENGTH, seed, folders.SPECIAL, folders.RANDOM_IDS)

    # Word order is drawn with as many bits as the length leaves: the same for samples of more than half the length.
    numbers = np.flatnonzero(dataset.plan.records["end"] - dataset.plan.records["start"] > LENGTH // 2)
    assert len(numbers) > 20
    slices, flags = dataset.slices(numbers), unpack_words(columns)
    batch, _ = pipeline.make(numbers, np.zeros_like(numbers))
    for row, (number, start, end) in enumerate(zip(numbers, slices.starts, slices.ends, strict=True)):
        positions, labels = batch.mlm_positions[row], batch.mlm_labels[row]
        trained = {int(position) - 1 for position in positions[labels != IGNORE]}
        starts = flags[start:end].copy()
        starts[0] = True
        shown = masked_positions(columns.tokens[start:end].astype(np.int64), starts, int(number), masking, seed)
        assert shown == trained


@given(words=st.lists(st.integers(1, 4), min_size=1, max_size=60), seed=st.integers(0, 99), sample=st.integers(0, 99))
def test_words_are_shown_whole_and_the_budget_is_kept(words, seed, sample):
    starts = np.zeros(sum(words), np.bool_)
    starts[np.cumsum([0, *words[:-1]])] = True
    shown = masked_positions(np.arange(len(starts)), starts, sample, MaskingSettings(), seed)
    number = np.cumsum(starts)
    for word in {int(number[position]) for position in shown}:
        assert set(np.flatnonzero(number == word).tolist()) <= shown
    # Rounded at random, and at least one token may be predicted.
    assert len(shown) < max(1, 0.15 * len(starts)) + 1


def test_other_seeds_and_samples_have_other_masks():
    starts = np.ones(100, np.bool_)
    shown = {
        masked_positions(np.arange(100), starts, sample, MaskingSettings(), seed)
        for sample in (0, 1)
        for seed in (1, 2)
    }
    assert len(shown) == 4
