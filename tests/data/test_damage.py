"""Whatever happened to a prepared folder is told with the file's name and a cure, in each mode as far as it looks."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.data.loader import Stream, build_evaluation, build_loader
from nezha_ds.data.plan import load_plan
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import DataError
from nezha_ds.shards import MANIFEST, Verify, read_manifest, write_manifest
from nezha_ds.world import World
from tests.data.folders import RANDOM_IDS, SPECIAL, random_columns, write_folder

SHAPES = [random_columns(seed, 40) for seed in range(4)]
CURE = r"copy it again|prepare again"
many = settings(max_examples=60)


def alike(columns, seed: int):
    """Other text in sentences, documents and words of the same sizes: its shard has the same number of bytes."""
    return replace(columns, tokens=np.random.default_rng(seed).permutation(columns.tokens))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> dict[str, Path]:
    """`a`, and `b` of another text with shards of the same sizes; both with three shards for training, one held out."""
    root = tmp_path_factory.mktemp("prepared")
    for name, text in (("a", SHAPES), ("b", [alike(part, 7) for part in SHAPES])):
        write_folder(root / name, text[:3], text[3:])
    return {name: root / name for name in ("a", "b")}


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared["a"], tmp_path / "folder"))


def stream(folder: Path, verify: Verify) -> Stream:
    data = DataSettings(shards=str(folder), length=64, verify=verify)
    return Stream(data, MaskingSettings(), 1, 8, World(), SPECIAL, RANDOM_IDS)


def read_all(folder: Path, verify: Verify = "hashes") -> int:
    """An epoch and an evaluation, as training reads them; the samples."""
    with build_loader(stream(folder, verify), global_batch=8, first=0) as batches:
        samples = sum(batch.samples for batch in islice(batches, -(-batches.plan_size // 8)))
    with build_evaluation(stream(folder, verify), limit=1000) as batches:
        return samples + sum(batch.samples for batch in batches)


def flip(path: Path, at: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    path.write_bytes(data)


places = st.floats(0, 1, exclude_max=True)
bits = st.integers(0, 7)
shards = st.sampled_from(["train-00000.arrow", "train-00001.arrow", "train-00002.arrow", "heldout-00003.arrow"])


# --------------------------------------------------------------------------------------------------------- flipped bits


@many
@given(shards, places, bits, st.booleans())
def test_a_flipped_bit_of_a_shard(prepared, tmp_path_factory, name, at, bit, planned):
    folder = Path(shutil.copytree(prepared["a"], tmp_path_factory.mktemp("flipped") / "folder"))
    if planned:
        read_all(folder)
    flip(folder / name, at, bit)
    with pytest.raises(DataError, match=CURE) as caught:
        read_all(folder)
    assert f"shard {folder / name} is damaged" in str(caught.value)


@many
@given(shards, places, bits, st.sampled_from(["sizes", "never"]))
def test_a_flipped_bit_that_nobody_looks_for_is_an_error_of_ours_or_other_text(prepared, folder, name, at, bit, verify):
    """Also in the file's own tables: what claims to lie beyond its end was a bus error."""
    shutil.rmtree(folder / "plans", ignore_errors=True)
    flip(folder / name, at, bit)
    try:
        assert read_all(folder, verify) > 0
    except DataError as error:
        assert str(folder / name) in str(error)
        assert "prepare again" in str(error).lower()
    finally:
        shutil.copy(prepared["a"] / name, folder / name)


@many
@given(places, bits)
def test_a_flipped_bit_of_the_manifest(prepared, folder, at, bit):
    shutil.copy(prepared["a"] / MANIFEST, folder / MANIFEST)
    flip(folder / MANIFEST, at, bit)
    with pytest.raises(DataError, match=rf"(?s){MANIFEST} .*({CURE})"):
        read_all(folder, "never")


@many
@given(places, bits)
def test_a_flipped_bit_of_a_plan_is_mended(prepared, folder, at, bit):
    data = DataSettings(shards=str(folder), length=64)
    manifest = read_manifest(folder)
    expected = load_plan(folder, manifest, "train", data)
    records = expected.records.tolist()
    (path,) = (folder / "plans").iterdir()
    whole = path.read_bytes()
    flip(path, at, bit)
    every = np.arange(len(records))
    try:
        found = load_plan(folder, manifest, "train", data).read(every)[0]
    except DataError as error:  # in the records, which are checked when they are first read
        assert re.search(r"plan .* is damaged .* start again, and it is built anew", str(error))
        found = load_plan(folder, manifest, "train", data).read(every)[0]
    assert found.tolist() == records
    path.write_bytes(whole)


# -------------------------------------------------------------------------------------------------------- whole mishaps


def cut(folder: Path, other: Path) -> str:
    path = folder / "train-00001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    return r"train-00001\.arrow (has [\d,]+ bytes instead of|cannot be read)"


def missing(folder: Path, other: Path) -> str:
    (folder / "train-00001.arrow").unlink()
    return r"train-00001\.arrow (is missing|cannot be read)"


def extra(folder: Path, other: Path) -> str:
    shutil.copy(other / "train-00000.arrow", folder / "train-00009.arrow")
    return r"train-00009\.arrow is not in manifest\.json: two preparations mixed\? Remove it"


def mixed(folder: Path, other: Path) -> str:
    shutil.copy(other / "train-00002.arrow", folder / "train-00002.arrow")
    return r"train-00002\.arrow is damaged or of another preparation"


def permuted(folder: Path, other: Path) -> str:
    """Shards in each other's places."""
    first, second = folder / "train-00000.arrow", folder / "train-00002.arrow"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    return r"train-0000[02]\.arrow (has [\d,]+ bytes instead of|is damaged or of|does not hold what the manifest says)"


def swapped(folder: Path, other: Path) -> str:
    """The manifest of another preparation whose shards have the same sizes."""
    shutil.copy(other / MANIFEST, folder / MANIFEST)
    return r"\.arrow is damaged or of another preparation"


def swapped_unlike(folder: Path, other: Path) -> str:
    """The manifest of another preparation, of other sizes."""
    write_folder(folder.parent / "third", [SHAPES[0], *SHAPES[:2]], [SHAPES[3]])
    shutil.copy(folder.parent / "third" / MANIFEST, folder / MANIFEST)
    return r"train-0000[12]\.arrow (has [\d,]+ bytes instead of|does not hold what the manifest says)"


def edited(folder: Path, other: Path) -> str:
    tree = json.loads((folder / MANIFEST).read_text())
    tree["sources"][0]["weight"] = 3
    (folder / MANIFEST).write_text(json.dumps(tree, indent=1))
    return r"manifest\.json was changed after it was written"


OPEN, READ, NEVER = "when it is opened", "when it is read", "never"
MISHAPS: dict[Callable[[Path, Path], str], dict[Verify, str]] = {
    cut: {"hashes": OPEN, "sizes": OPEN, "never": READ},
    missing: {"hashes": OPEN, "sizes": OPEN, "never": READ},
    extra: {"hashes": OPEN, "sizes": OPEN, "never": NEVER},
    mixed: {"hashes": READ, "sizes": NEVER, "never": NEVER},
    permuted: {"hashes": OPEN, "sizes": OPEN, "never": READ},
    swapped: {"hashes": READ, "sizes": NEVER, "never": NEVER},
    swapped_unlike: {"hashes": OPEN, "sizes": OPEN, "never": READ},
    edited: {"hashes": OPEN, "sizes": OPEN, "never": OPEN},
}


@pytest.mark.parametrize("verify", ["hashes", "sizes", "never"])
@pytest.mark.parametrize("mishap", MISHAPS, ids=lambda mishap: mishap.__name__)
def test_a_mishap_is_told_when_the_mode_says(prepared, folder, mishap, verify):
    """Plans are there already, so that opening a loader opens no shard."""
    read_all(folder, "never")
    message, told = mishap(folder, prepared["b"]), MISHAPS[mishap][verify]
    if told == NEVER:
        assert read_all(folder, verify) > 0
        return
    if mishap in (swapped, swapped_unlike):
        source = prepared["b"] if mishap is swapped else folder.parent / "third"
        read_all(source)
        shutil.copytree(source / "plans", folder / "plans", dirs_exist_ok=True)
    with pytest.raises(DataError, match=rf"{message}.*") as caught:
        loader = build_loader(stream(folder, verify), global_batch=8, first=0)
        assert told == READ, "opened although it should not be"
        with loader as batches:
            for _ in range(batches.plan_size):
                next(batches)
    assert "prepare again" in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_an_edited_manifest_is_accepted_when_it_is_written_anew(folder):
    """The fingerprint stands against accidents; whoever writes a manifest with this package means it."""
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"heldout": 0.3}))
    assert read_manifest(folder).heldout == 0.3
