"""Ids of 32 bits where 16 do not suffice: from text to batches, up to the last entry."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.data.collate import replacement_ids, special_ids
from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.shards import Columns, Manifest, id_type, open_shard, pack_words, write_shard
from nezha_ds.text.vocab import SPECIAL_TOKENS, Vocabulary, load_vocabulary
from nezha_ds.world import World


def write_vocabulary(folder: Path, entries: int) -> Vocabulary:
    """The special tokens, and w5, w6 … up to the last id."""
    path = folder / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *(f"w{index}" for index in range(5, entries))]) + "\n")
    return load_vocabulary(path)


def prepared(folder: Path, entries: int, documents: list[list[int]]) -> Manifest:
    """Documents of these ids, prepared with a vocabulary of so many entries."""
    write_vocabulary(folder, entries)
    (folder / "text.txt").write_text("\n\n".join(" ".join(f"w{index}" for index in ids) for ids in documents))
    settings = PrepareSettings(
        inputs=(str(folder / "text.txt"),), out=folder / "out", vocabulary=folder / "vocab.txt", heldout=0.0, workers=1
    )
    return prepare(settings, progress=False)


def stored_type(path: Path) -> pa.DataType:
    with pa.ipc.open_file(path) as file:
        return file.schema.field("tokens").type.value_type


@pytest.mark.parametrize(
    ("entries", "stored"), [(65_535, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.uint32()), (70_000, pa.uint32())]
)
def test_shards_widen_when_the_last_id_needs_it(tmp_path: Path, entries: int, stored: pa.DataType) -> None:
    ids = [5, 300, entries - 1, entries - 2, 255, 256]
    manifest = prepared(tmp_path, entries, [ids])
    (entry,) = manifest.shards
    assert manifest.tokenizer.vocabulary_size == entries
    assert stored_type(tmp_path / "out" / entry.name) == stored
    columns = open_shard(tmp_path / "out", entry, entries)
    assert columns.tokens.tolist() == ids
    assert entry.unknowns == 0


@given(size=st.integers(6, 1 << 20), data=st.data())
def test_every_id_of_every_vocabulary_comes_back(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    assert np.iinfo(id_type(size)).max >= size - 1
    columns = Columns(
        tokens=np.array(ids, id_type(size)),
        word_bits=pack_words(np.ones(len(ids), np.bool_)),
        documents=np.array([0, len(ids)], np.int64),
        sentences=np.zeros(1, np.int64),
    )
    folder = tmp_path_factory.mktemp("shard")
    entry = write_shard(folder, "train.arrow", "train", "x", columns, 1, size)
    assert open_shard(folder, entry, size).tokens.tolist() == ids
    assert entry.unknowns == ids.count(1)


def test_batches_hold_and_replace_what_16_bits_cannot(tmp_path: Path) -> None:
    entries = 70_000
    rng = np.random.default_rng(1)
    documents = rng.integers(65_600, entries, (200, 100)).tolist()
    prepared(tmp_path, entries, documents)
    vocabulary = load_vocabulary(tmp_path / "out" / "vocab.txt")
    stream = Stream(
        DataSettings(shards=str(tmp_path / "out"), length=128, format="doc-sentences"),
        MaskingSettings(mask_share=0.0, random_share=1.0),
        seed=1,
        micro_batch=200,
        world=World(),
        special=special_ids(vocabulary),
        random_ids=replacement_ids(vocabulary),
    )
    with build_loader(stream, global_batch=200, first=0) as loader:
        batch = next(loader)
    ids, positions, labels = batch.input_ids.numpy(), batch.mlm_positions.numpy(), batch.mlm_labels.numpy()
    rows, places = np.nonzero(labels >= 0)
    at = positions[rows, places]
    seen, originals = ids[rows, at], labels[rows, places]
    # What was there, was there: put back, every row is a document.
    ids[rows, at] = originals
    assert sorted(row[1:101].tolist() for row in ids) == sorted(documents)
    assert originals.min() >= 65_600
    # Replacements are drawn from all entries but the special ones: 6.4% of 3,000 lie above 65,535.
    assert len(seen) == 3000
    assert seen.min() >= 5
    assert seen.max() < entries
    assert 0.045 < (seen > 65_535).mean() < 0.085
    assert np.unique(seen // 7000).tolist() == [*range(10)]
