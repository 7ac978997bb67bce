"""A plan holds every token once, in samples that fit and could not be longer; its file is a cache and no more."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.data.formats import full_sentences
from nezha_ds.data.plan import build_plan, load_plan, plan_key
from nezha_ds.data.settings import DataSettings
from nezha_ds.errors import DataError
from nezha_ds.shards import Columns, Manifest
from tests.data.folders import documents, random_columns, slow_row, to_columns, write_folder


def slow_plan(columns: Columns, length: int) -> list[tuple[int, int]]:
    """Sentence after sentence, for text whose sentences all fit."""
    bounds, starts = set(columns.documents.tolist()), columns.sentences.tolist()
    samples, begin, held = [], 0, 0
    for start, end in zip(starts, [*starts[1:], len(columns.tokens)], strict=True):
        cost = end - start + (start in bounds and start != begin)
        if held and held + cost > length - 2:
            samples.append((begin, start))
            begin, held, cost = start, 0, end - start
        held += cost
    return [*samples, (begin, len(columns.tokens))]


@given(documents, st.integers(64, 200))
def test_equals_packing_sentence_by_sentence(documents, length):
    columns = to_columns(documents)
    assert full_sentences(columns, length).tolist() == slow_plan(columns, length)


@given(documents, st.integers(16, 40))
def test_long_sentences_are_cut_and_no_token_is_lost(documents, length):
    columns = to_columns(documents)
    records = full_sentences(columns, length)
    assert records["start"][0] == 0
    assert records["end"].tolist() == [*records["start"][1:].tolist(), len(columns.tokens)]
    assert np.all(records["end"] > records["start"])
    for start, end in records.tolist():
        slow_row(columns, start, end, length)  # which checks that it fits
        # Words have at most 5 tokens here, so every cut finds a word start.
        assert columns.word_starts(np.array([start]))[0]


def test_a_word_without_end_is_cut_where_it_must_be():
    columns = to_columns([[[list(range(200, 300))]]])
    assert full_sentences(columns, 32).tolist() == [(0, 30), (30, 60), (60, 90), (90, 100)]


@pytest.fixture
def prepared(tmp_path: Path):
    manifest = write_folder(tmp_path, [random_columns(seed, 200) for seed in range(3)])
    return tmp_path, manifest, DataSettings(shards=str(tmp_path), length=64)


def cached(folder: Path) -> Path:
    (path,) = (folder / "plans").iterdir()
    return path


def test_is_built_once_and_mapped_afterwards(prepared):
    folder, manifest, settings = prepared
    calls = []
    first = load_plan(folder, manifest, "train", settings, lambda done, total: calls.append((done, total)))
    second = load_plan(folder, manifest, "train", settings, lambda *_: pytest.fail("built again"))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    built = build_plan(folder, manifest, "train", settings)
    for plan in (first, second):
        assert isinstance(plan.records.base, np.memmap)
        assert np.array_equal(plan.records, built.records)
        assert plan.counts.tolist() == built.counts.tolist()


def started_twice(folder: Path, manifest: Manifest, settings: DataSettings) -> list[tuple[int, ...]]:
    """Every record, read by the first start that finds the plan sound; the second must."""
    for start in range(2):
        plan = load_plan(folder, manifest, "train", settings)
        try:
            return plan.read(np.arange(len(plan)))[0].tolist()
        except DataError as error:
            assert "start again" in str(error)
            assert start == 0
    raise AssertionError


def test_a_damaged_file_is_built_again(prepared, caplog):
    folder, manifest, settings = prepared
    expected = load_plan(folder, manifest, "train", settings).records.tolist()
    path = cached(folder)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    # Every byte of numpy's own header and of the counts, then bytes of records, then cut files.
    flips = [*range(0, 100, 3), *range(128, 160), *rng.integers(128, len(whole), 30).tolist()]
    damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in flips]
    damaged += [whole[:size] for size in (0, 5, 60, 128, 136, len(whole) - 8, len(whole) - 1)]
    for data in damaged:
        path.write_bytes(data)
        assert started_twice(folder, manifest, settings) == expected
    assert "building it again" in caplog.text
    assert path.read_bytes() == whole


def test_reading_checks_the_records_of_the_shards_it_reads_and_of_no_other(prepared):
    folder, manifest, settings = prepared
    load_plan(folder, manifest, "train", settings)
    data = bytearray(cached(folder).read_bytes())
    data[-2] ^= 1
    cached(folder).write_bytes(data)
    plan = load_plan(folder, manifest, "train", settings)
    records, shards = plan.read(np.arange(plan.counts[:2].sum()))
    assert shards.tolist() == [0] * plan.counts[0] + [1] * plan.counts[1]
    assert records.tolist() == build_plan(folder, manifest, "train", settings).records[: len(records)].tolist()
    with pytest.raises(DataError, match=r"plan .* is damaged .*; start again"):
        plan.read(np.array([3, len(plan) - 1]))
    assert not list((folder / "plans").iterdir())


def test_works_in_memory_where_it_cannot_write(prepared, caplog):
    folder, manifest, settings = prepared
    (folder / "plans").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        plan = load_plan(folder, manifest, "train", settings)
    assert len(plan) == plan.counts.sum() > 0
    assert "kept in memory" in caplog.text


def test_the_key_covers_what_the_plan_depends_on(prepared, tmp_path_factory):
    _, manifest, settings = prepared
    other = write_folder(tmp_path_factory.mktemp("other"), [random_columns(9, 200)])
    keys = {
        plan_key(manifest, "train", settings),
        plan_key(manifest, "heldout", settings),
        plan_key(manifest, "train", settings.model_copy(update={"length": 128})),
        plan_key(other, "train", settings),
    }
    assert len(keys) == 4
    assert plan_key(manifest, "train", settings.model_copy(update={"verify": "never"})) in keys


@pytest.mark.parametrize(("split", "way_out"), [("heldout", "larger held-out share"), ("train", "more text")])
def test_an_empty_split_says_what_to_do(tmp_path, split, way_out):
    settings = DataSettings(shards=str(tmp_path))
    columns = [random_columns(0, 20)]
    manifest = write_folder(tmp_path, columns) if split == "heldout" else write_folder(tmp_path, [], columns)
    with pytest.raises(DataError, match=way_out):
        load_plan(tmp_path, manifest, split, settings)
