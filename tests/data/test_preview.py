"""What `inspect` shows of samples and masks is what training makes of the same folder."""

from collections import Counter

import numpy as np
import pytest

from nezha_ds.batch import IGNORE
from nezha_ds.data import preview as previews
from nezha_ds.data.collate import replacement_ids, special_ids
from nezha_ds.data.dataset import open_dataset
from nezha_ds.data.pipeline import Pipeline
from nezha_ds.data.preview import preview
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.text.vocab import SPECIAL_TOKENS, parse_vocabulary
from tests.data import folders

VOCABULARY = parse_vocabulary(
    "\n".join([*SPECIAL_TOKENS, *(f"t{n}" for n in range(folders.VOCABULARY_SIZE - 5))]).encode(), "a test"
)


@pytest.fixture
def folder(tmp_path):
    folders.write_folder(tmp_path, [folders.random_columns(seed, sentences=300) for seed in range(3)])
    return tmp_path


def trained(settings, masking, seed):
    """Every sample of the first epoch, through the functions that feed a run."""
    dataset, _ = open_dataset(settings, "train")
    special, random_ids = special_ids(VOCABULARY), replacement_ids(VOCABULARY)
    numbers = np.arange(len(dataset.plan))
    ordered = settings.pairing == "sentence-order"
    pipeline = Pipeline(dataset, masking, settings.length, seed, special, random_ids, ordered)
    return pipeline.make(numbers, np.zeros_like(numbers))


@pytest.mark.parametrize(
    ("form", "pairing"),
    [("full-sentences", "next-sentence"), ("segment-pair", "next-sentence"), ("segment-pair", "sentence-order")],
)
@pytest.mark.parametrize("method", ["whole-word", "character", "n-gram", "span"])
def test_it_shows_and_counts_what_training_makes(folder, method, form, pairing):
    settings = DataSettings(shards=str(folder), length=64, format=form, pairing=pairing)
    masking = MaskingSettings(method=method)
    batch, counts = trained(settings, masking, seed=3)
    found = preview(settings, masking, 3, VOCABULARY, rows=20)

    assert found.whole
    assert found.samples == len(batch.lengths)
    assert found.counted == counts.sum(0, found.samples)
    assert found.achieved_rate == counts.masked.sum() / counts.tokens.sum()
    assert sum(found.outcomes) == counts.masked.sum()
    assert found.mean_fill == pytest.approx(float(batch.lengths.double().mean()) / 64)
    assert found.fill.tolist() == np.histogram(batch.lengths.numpy() / 64, np.linspace(0, 1, 11))[0].tolist()

    labels = batch.next_sentence_labels if pairing == "next-sentence" else batch.sentence_order_labels
    names = {"next-sentence": ["next", "random"], "sentence-order": ["in order", "swapped"]}[pairing]
    told = [] if labels is None else [{0: names[0], 1: names[1], IGNORE: "none"}[one] for one in labels.tolist()]
    assert found.pairs == Counter(told)

    assert len({row.number for row in found.rows}) == 20
    for row in found.rows:
        ids, length = batch.input_ids[row.number].tolist(), int(batch.lengths[row.number])
        assert row.label == (told[row.number] if told else "")
        labels = batch.mlm_labels[row.number]
        places = batch.mlm_positions[row.number][labels != IGNORE] - 1
        assert row.seen.tolist() == ids[1 : length - 1]
        assert np.flatnonzero(row.predicted).tolist() == places.tolist()
        assert row.ids[row.predicted].tolist() == labels[labels != IGNORE].tolist()
        assert row.ids[~row.predicted].tolist() == row.seen[~row.predicted].tolist()
        assert (row.ids[~row.text] == VOCABULARY.sep_id).all()
        assert row.word_starts[~row.text].all()
        assert not row.predicted[~row.text].any()


def test_outcomes_are_told_apart(folder):
    settings = DataSettings(shards=str(folder), length=64)
    for shares, kind in (((1.0, 0.0), 0), ((0.0, 1.0), 1), ((0.0, 0.0), 2)):
        masking = MaskingSettings(mask_share=shares[0], random_share=shares[1])
        found = preview(settings, masking, 1, VOCABULARY, rows=0)
        # One random replacement in a thousand is the token itself.
        assert found.outcomes[kind] >= 0.99 * sum(found.outcomes)
        assert found.asked_outcomes[kind] == 1
        assert found.rows == ()


def test_of_many_shards_some_are_looked_into(folder, monkeypatch):
    monkeypatch.setattr(previews, "SHARDS", 2)
    monkeypatch.setattr(previews, "PLACES", 64 * 50)
    found = preview(DataSettings(shards=str(folder), length=64), MaskingSettings(), 1, VOCABULARY, rows=5)
    assert not found.whole
    assert found.samples == 50
    assert len(found.rows) == 5


def test_long_samples_are_cut_where_they_are_shown(folder):
    found = preview(DataSettings(shards=str(folder), length=512), MaskingSettings(), 1, VOCABULARY, rows=3)
    assert [len(row.ids) for row in found.rows] == [previews.SHOWN_TOKENS] * 3
    assert all(len(row.predicted) == len(row.seen) == len(row.ids) for row in found.rows)
