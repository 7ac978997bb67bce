"""Shards on S3 give what shards in a folder give, bit for bit, through a cache that is as small as it may be."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nezha_ds import remote
from nezha_ds.cli import main
from nezha_ds.data import pipeline
from nezha_ds.data.dataset import open_dataset
from nezha_ds.data.loader import Loader, Stream, build_evaluation, build_loader
from nezha_ds.data.order import WINDOW, Order
from nezha_ds.data.plan import load_plan
from nezha_ds.data.settings import DataSettings, Ingredient, MaskingSettings
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.shards import Manifest, read_manifest
from nezha_ds.shelf import open_shelf
from nezha_ds.world import World
from tests.data.folders import RANDOM_IDS, SPECIAL, random_columns, write_folder
from tests.helpers import proxy, s3
from tests.helpers.ranks import environment

SHARDS = 3 * WINDOW
BATCH = 24
EVERYTHING = 1.0
"""GB: a limit above all shards."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prepared")
    write_folder(path, [random_columns(seed, 60) for seed in range(SHARDS)], [random_columns(99, 120)])
    (path / "vocab.txt").write_text("[PAD]\n")
    return path


@pytest.fixture(scope="module")
def uri(store: s3.Store, folder: Path) -> str:
    return store.upload(folder, "loaded/prepared")


@pytest.fixture
def front(store: s3.Store, uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[proxy.Proxy]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.02)
    with proxy.run(store.port) as running:
        yield running


def settings(place: object, cache: Path | str = "", limit: float = EVERYTHING) -> DataSettings:
    return DataSettings(shards=str(place), length=64, cache=str(cache), cache_limit=limit)


def tightest(manifest: Manifest) -> float:
    """The least limit that is not refused, in GB."""
    sizes = sorted((entry.bytes for entry in manifest.of("train")), reverse=True)
    return sum(sizes[: 2 * WINDOW]) / 1e9


def loader(data: DataSettings, rank: int = 0, size: int = 1, first: int = 0) -> Loader:
    stream = Stream(data, MaskingSettings(), 3, 4, World(rank, size, rank, size), SPECIAL, RANDOM_IDS)
    return build_loader(stream, global_batch=BATCH, first=first)


def batches(made: Loader, count: int | None = None) -> list[list]:
    with made:
        return [
            [batch.sample_ids.tolist(), batch.input_ids.tolist(), batch.mlm_labels.tolist()]
            for batch in islice(made, count)
        ]


def shard_gets(front: proxy.Proxy) -> list[str]:
    return [request.path for request in front.gets(".arrow")]


def test_batches_are_those_of_the_folder_over_an_epoch_and_a_half_through_the_smallest_cache(
    tmp_path, folder, uri, front, monkeypatch
):
    monkeypatch.setattr(pipeline, "BLOCK", 1 << 11)
    size = open_dataset(settings(folder), "train")[0].plan.counts.sum()
    count = int(1.5 * size) // 4
    far = settings(uri + front.parameters, tmp_path, tightest(read_manifest(folder)))
    assert batches(loader(far), count) == batches(loader(settings(folder)), count)
    cached = sum(path.stat().st_size for path in tmp_path.glob("*/shards/*"))
    assert cached <= far.cache_limit * 1e9


def test_a_run_goes_on_from_the_middle_with_an_empty_cache(tmp_path, folder, uri, front):
    first = 7 * BATCH
    assert batches(loader(settings(uri + front.parameters, tmp_path), first=first), 20) == batches(
        loader(settings(folder), first=first), 20
    )


def test_an_evaluation_is_that_of_the_folder(tmp_path, folder, uri, front):
    def evaluation(place: object) -> Loader:
        stream = Stream(settings(place, tmp_path), MaskingSettings(), 3, 4, World(), SPECIAL, RANDOM_IDS)
        return build_evaluation(stream, limit=50)

    assert batches(evaluation(uri + front.parameters)) == batches(evaluation(folder))


RANK = """
import json, sys
from tests.data.test_remote_shards import batches, loader
from nezha_ds.data.settings import DataSettings
tree, rank, size, count = json.load(sys.stdin)
print(json.dumps(batches(loader(DataSettings(**tree), rank, size), count)))
"""


def test_two_ranks_of_a_node_read_what_one_does_and_download_each_shard_once(tmp_path, folder, uri, front):
    size = int(open_dataset(settings(folder), "train")[0].plan.counts.sum())
    count = size // BATCH * BATCH // 8
    far = settings(uri + front.parameters, tmp_path)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for rank, process in enumerate(ranks):
        process.stdin.write(json.dumps([far.model_dump(), rank, 2, count]))
        process.stdin.close()
        process.stdin = None
    found = [json.loads(process.communicate(timeout=600)[0]) for process in ranks]
    assert found == [batches(loader(settings(folder), rank, 2), count) for rank in range(2)]
    names = [path for path in shard_gets(front) if "train" in path]
    assert len(names) == len(set(names)) == SHARDS


def test_a_rank_downloads_little_more_than_its_first_windows_before_the_first_batch(
    tmp_path, folder, uri, front, monkeypatch
):
    monkeypatch.setattr(pipeline, "BLOCK", 1 << 11)
    shelf = open_shelf(uri + front.parameters, str(tmp_path), 10**9)
    load_plan(shelf, read_manifest(shelf.folder), "train", settings(uri))
    shelf.close()
    for path in tmp_path.glob("*/shards/*"):
        path.unlink()
    front.log.clear()
    batches(loader(settings(uri + front.parameters, tmp_path)), 1)
    assert WINDOW <= len(shard_gets(front)) <= 2 * WINDOW


def test_a_loader_tells_what_came_from_the_store_and_how_often_it_asked_again(tmp_path, folder, uri, front):
    front.rule = lambda request, before: "error" if request.path.endswith("train-00003.arrow") and not before else None
    with loader(settings(uri + front.parameters, tmp_path)) as made:
        next(made)
        fetched, retries = made.take_fetched()
        assert fetched == sum(entry.bytes for entry in read_manifest(folder).of("train"))
        assert retries >= 1
        assert made.take_fetched() == (0, 0)


def test_a_plan_that_was_uploaded_spares_the_reading_of_every_shard(tmp_path, folder, store, front):
    expected = load_plan(folder, read_manifest(folder), "train", settings(folder))
    uri = store.upload(folder, "planned/prepared") + front.parameters
    shelf = open_shelf(uri, str(tmp_path), 10**9)
    found = load_plan(shelf, read_manifest(shelf.folder), "train", settings(uri), lambda *_: pytest.fail("built"))
    assert found.records.tobytes() == expected.records.tobytes()
    assert shard_gets(front) == []


def test_a_plan_that_is_damaged_in_the_store_is_built_here(tmp_path, tmp_path_factory, folder, store, front):
    copy = tmp_path_factory.mktemp("damaged") / "prepared"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("plans"))
    manifest = read_manifest(copy)
    expected = load_plan(copy, manifest, "train", settings(copy)).records.tobytes()
    (path,) = (copy / "plans").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")  # in the last record
    uri = store.upload(copy, "damaged/prepared") + front.parameters
    shelf = open_shelf(uri, str(tmp_path), 10**9)
    built: list[int] = []
    found = load_plan(shelf, manifest, "train", settings(uri), lambda done, _: built.append(done))
    assert found.records.tobytes() == expected
    assert built[-1] == len(manifest.of("train"))


def test_a_limit_below_two_windows_of_the_order_is_refused_with_the_number_that_it_takes(tmp_path, folder, uri):
    needed = tightest(read_manifest(folder))
    with pytest.raises(ConfigError, match=r"data\.cache_limit = \S+ GB is too little: .* set data\.cache_limit=\S+ or"):
        open_dataset(settings(uri, tmp_path, needed * 0.99), "train")


def test_a_shard_that_is_missing_or_cut_short_at_the_store_is_named_before_it_is_needed(tmp_path, folder, store):
    uri = store.upload(folder, "incomplete/prepared")
    manifest = read_manifest(folder)
    shelf = open_shelf(uri, str(tmp_path), 10**9)
    shelf.check(manifest)
    store.put("incomplete/prepared/train-00004.arrow", b"short")
    with pytest.raises(
        DataError, match=r"s3://incomplete/prepared/train-00004\.arrow has 5 bytes instead of .*copy it"
    ):
        shelf.check(manifest)
    store.remove("incomplete/prepared/train-00004.arrow")
    with pytest.raises(DataError, match=r"s3://incomplete/prepared/train-00004\.arrow is missing; copy it"):
        shelf.check(manifest)


def test_a_place_without_a_manifest_is_no_prepared_folder(store, tmp_path):
    store.put("empty/other", b"")
    with pytest.raises(DataError, match=r"s3://empty/prepared has no manifest\.json: .*`aws s3 sync DIR s3://empty/"):
        open_shelf("s3://empty/prepared", str(tmp_path), 10**9)


def test_a_cached_shard_that_was_damaged_on_this_disk_comes_again(tmp_path, folder, uri, front):
    far = settings(uri + front.parameters, tmp_path)
    expected = batches(loader(far), 3)
    for path in tmp_path.glob("*/shards/train-*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert batches(loader(far), 3) == expected


def test_the_order_tells_which_shards_come_next():
    order = Order([10] * SHARDS, seed=5)
    windows = [{sample // 10 for sample in order.sample(range_of(place)).tolist()} for place in range(2 * 3)]
    for place in range(5):
        assert set(order.shards_from(place * 10 * WINDOW + 7)) == windows[place] | windows[place + 1]
        assert set(order.shards_from(place * 10 * WINDOW + 7)[:WINDOW]) == windows[place]


def range_of(window: int) -> np.ndarray:
    return np.arange(window * 10 * WINDOW, (window + 1) * 10 * WINDOW)


def test_inspect_tells_of_a_bucket_what_it_tells_of_the_folder(embedded, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    uri = store.upload(embedded, "inspected/prepared")
    told = []
    for place in (embedded, uri):
        assert main(["inspect", str(place), "--samples", "1"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


def test_a_mixture_of_a_bucket_and_a_folder_is_that_of_two_folders(tmp_path, tmp_path_factory, folder, uri, front):
    other = tmp_path_factory.mktemp("other")
    write_folder(other, [random_columns(100 + seed, 60) for seed in range(WINDOW)])

    def mixed(place: object) -> DataSettings:
        mixture = {"far": Ingredient(shards=str(place), weight=3), "near": Ingredient(shards=str(other), weight=1)}
        return DataSettings(mixture=mixture, length=64, cache=str(tmp_path))

    first = 5 * BATCH
    assert batches(loader(mixed(uri + front.parameters), first=first), 60) == batches(
        loader(mixed(folder), first=first), 60
    )
