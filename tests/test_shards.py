"""A shard gives back what was written, and every kind of damage is named with its shard and the cure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.errors import DataError
from nezha_ds.shards import (
    MANIFEST,
    Columns,
    Manifest,
    ShardEntry,
    check_sizes,
    join,
    open_shard,
    pack_words,
    read_manifest,
    unpack_words,
    write_manifest,
    write_shard,
)
from tests.data.folders import SPECIAL, VOCABULARY_SIZE, documents, random_columns, to_columns, write_folder


def same(a: Columns, b: Columns) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "word_bits", "documents", "sentences")
    )


@settings(max_examples=50)
@given(documents, st.sampled_from([VOCABULARY_SIZE, 1 << 16, 100_000]))
def test_round_trip(tmp_path, documents, vocabulary_size):
    columns = to_columns(documents)
    entry = write_shard(tmp_path, "a.arrow", "train", "random", columns, SPECIAL.unk, vocabulary_size)
    read = open_shard(tmp_path, entry, vocabulary_size)
    assert same(read, columns)
    assert read.tokens.dtype == (np.uint32 if vocabulary_size > 1 << 16 else np.uint16)
    words = [word for document in documents for sentence in document for word in sentence]
    assert entry.documents == len(documents)
    assert entry.sentences == sum(map(len, documents))
    assert entry.words == len(words)
    assert entry.tokens == sum(map(len, words))
    assert entry.bytes == (tmp_path / "a.arrow").stat().st_size


def test_any_arrow_reader_sees_documents(tmp_path):
    documents = [[[[200, 201], [202]], [[203]]], [[[204]]]]
    write_shard(tmp_path, "a.arrow", "train", "random", to_columns(documents), SPECIAL.unk, VOCABULARY_SIZE)
    rows = pa.ipc.open_file(pa.memory_map(str(tmp_path / "a.arrow"))).read_all().to_pylist()
    assert rows == [
        {"tokens": [200, 201, 202, 203], "words": [True, False, True, True], "sentences": [0, 3]},
        {"tokens": [204], "words": [True], "sentences": [0]},
    ]


@given(st.lists(documents, min_size=1, max_size=4))
def test_joined_parts_equal_the_whole(parts):
    assert same(join(map(to_columns, parts)), to_columns([document for part in parts for document in part]))


def test_nothing_to_join():
    with pytest.raises(DataError, match="at least one document"):
        join([])


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_word_bits(flags):
    array = np.array(flags)
    count = len(flags)
    columns = Columns(np.zeros(count, np.uint16), pack_words(array), np.array([0, count]), np.array([0]))
    assert unpack_words(columns).tolist() == flags
    index = np.random.default_rng(0).integers(0, count, (3, 5))
    assert np.array_equal(columns.word_starts(index), array[index])


def test_unknowns_are_counted(tmp_path):
    columns = to_columns([[[[SPECIAL.unk], [200]], [[SPECIAL.unk]]]])
    assert write_shard(tmp_path, "a.arrow", "train", "random", columns, SPECIAL.unk, VOCABULARY_SIZE).unknowns == 2


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path, write_folder(tmp_path, [random_columns(seed, 50) for seed in range(2)])


def test_the_manifest_round_trips_and_its_fingerprint_covers_it(prepared):
    folder, manifest = prepared
    assert read_manifest(folder) == manifest
    assert read_manifest(folder).fingerprint == manifest.fingerprint
    for change in ({"heldout": 0.2}, {"normalisation": "plain/2"}, {"sources": ()}):
        changed = Manifest.model_validate(manifest.model_dump() | change)
        assert changed.fingerprint != manifest.fingerprint
    assert [entry.name for entry in manifest.of("train")] == ["train-00000.arrow", "train-00001.arrow"]
    assert manifest.of("heldout") == ()
    assert manifest.total("tokens") == sum(entry.tokens for entry in manifest.shards)


def test_every_flipped_bit_is_found_by_its_hash(prepared):
    folder, manifest = prepared
    entry = manifest.shards[1]
    whole = (folder / entry.name).read_bytes()
    for at in np.linspace(0, len(whole) - 1, 40).astype(int):
        (folder / entry.name).write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"train-00001\.arrow is damaged .*copy it again"):
            open_shard(folder, entry, VOCABULARY_SIZE)


@pytest.mark.parametrize("verify", ["hashes", "sizes"])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
def test_a_cut_file(prepared, verify, left):
    folder, manifest = prepared
    entry = manifest.shards[0]
    path = folder / entry.name
    path.write_bytes(path.read_bytes()[: int(entry.bytes * left)])
    with pytest.raises(DataError, match=r"train-00000\.arrow has [\d,]+ bytes instead of"):
        open_shard(folder, entry, VOCABULARY_SIZE, verify)


@pytest.mark.parametrize("left", [0, 5, 1000])
def test_a_cut_file_that_nobody_verifies_still_is_an_error_of_ours(prepared, left):
    folder, manifest = prepared
    entry = manifest.shards[0]
    path = folder / entry.name
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match=r"train-00000\.arrow cannot be read"):
        open_shard(folder, entry, VOCABULARY_SIZE, "never")


@pytest.mark.parametrize("verify", ["hashes", "sizes", "never"])
def test_a_missing_shard(prepared, verify):
    folder, manifest = prepared
    (folder / "train-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"train-00001\.arrow"):
        open_shard(folder, manifest.shards[1], VOCABULARY_SIZE, verify)
    with pytest.raises(DataError, match=r"train-00001\.arrow is missing"):
        check_sizes(folder, manifest.shards)


@pytest.mark.parametrize("verify", ["sizes", "never"])
def test_shards_of_two_preparations_mixed(prepared, verify):
    folder, manifest = prepared
    first, second = manifest.shards
    (folder / second.name).write_bytes((folder / first.name).read_bytes())
    with pytest.raises(DataError, match=r"train-00001\.arrow"):
        open_shard(folder, second, VOCABULARY_SIZE, verify)


def test_another_vocabulary(prepared):
    folder, manifest = prepared
    with pytest.raises(DataError, match=r"train-00000\.arrow has id \d+, the vocabulary 300 entries"):
        open_shard(folder, manifest.shards[0], 300)


def test_another_file_under_the_shards_name(prepared):
    folder, manifest = prepared
    table = pa.table({"tokens": pa.array([[1], [2]], pa.list_(pa.uint16()))})
    with pa.ipc.new_file(str(folder / "train-00000.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"train-00000\.arrow cannot be read"):
        open_shard(folder, manifest.shards[0], VOCABULARY_SIZE, "never")


def test_a_folder_that_is_not_prepared(tmp_path):
    with pytest.raises(DataError, match="nezha-ds prepare INPUT --out"):
        read_manifest(tmp_path)


def test_a_damaged_manifest(prepared):
    folder, _ = prepared
    path = folder / MANIFEST
    whole = path.read_text()
    for damaged in (whole[:100], whole.replace('"tokens"', '"tokans"'), "", "[]"):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):
            read_manifest(folder)


def test_a_manifest_of_a_later_format(prepared):
    folder, manifest = prepared
    write_manifest(folder, manifest.model_copy(update={"format": 99}))
    with pytest.raises(DataError, match="has format 99"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "a/b.arrow", "a/.."])
def test_a_manifest_that_points_out_of_its_folder(prepared, name):
    folder, _ = prepared
    tree = json.loads((folder / MANIFEST).read_text())
    tree["shards"][0]["name"] = name
    (folder / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(DataError, match="outside its folder"):
        read_manifest(folder)


# -------------------------------------------------------------------------------------------------- a disk that is full

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nezha_ds.errors import NezhaError
from nezha_ds.shards import write_shard
from tests.data.folders import random_columns
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_shard(Path(sys.argv[1]), "a.arrow", "train", "random", random_columns(1, 5000), 100, 1000)
except NezhaError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_a_full_disk_leaves_the_old_shard_and_no_rubbish(tmp_path):
    old = write_shard(tmp_path, "a.arrow", "train", "random", random_columns(0, 20), SPECIAL.unk, VOCABULARY_SIZE)
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 1
    assert "LaunchError: cannot write" in run.stderr
    assert "free space on its disk" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrow"]
    assert isinstance(old, ShardEntry)
    assert same(open_shard(tmp_path, old, VOCABULARY_SIZE), random_columns(0, 20))
