"""A node's cache: one download for all, nothing above the limit, nothing stale after kill -9, no fault unnoticed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nezha_ds import remote
from nezha_ds.cache import PART, Ahead, Cache, Item
from nezha_ds.errors import DataError, LaunchError
from tests.helpers import proxy, s3
from tests.helpers.processes import wait_for
from tests.helpers.ranks import environment

SIZE = 1 << 20
COUNT = 6


@pytest.fixture(scope="module")
def objects(store: s3.Store) -> dict[str, bytes]:
    contents = {f"train-{number}.arrow": os.urandom(SIZE) for number in range(COUNT)}
    for name, data in contents.items():
        store.put(f"cached/prepared/{name}", data)
    return contents


@pytest.fixture
def front(store: s3.Store, objects, monkeypatch: pytest.MonkeyPatch) -> Iterator[proxy.Proxy]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.02)
    with proxy.run(store.port) as running:
        yield running


def items(folder: Path, objects: dict[str, bytes], front: proxy.Proxy) -> list[Item]:
    (folder / "key" / "shards").mkdir(parents=True, exist_ok=True)
    return [
        Item(
            f"s3://cached/prepared/{name}{front.parameters}",
            folder / "key" / "shards" / name,
            SIZE,
            hashlib.sha256(data).hexdigest(),
        )
        for name, data in objects.items()
    ]


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "key" / "shards").iterdir())


def has_contents(item: Item, objects: dict[str, bytes]) -> bool:
    return item.path.read_bytes() == objects[item.path.name]


# ---------------------------------------------------------------------------------------------------- one process


def test_a_file_is_downloaded_once_and_kept(tmp_path, objects, front):
    for _ in range(2):
        cache = Cache(tmp_path, 100 * SIZE)
        for item in items(tmp_path, objects, front):
            os.close(cache.fetch(item))
            assert has_contents(item, objects)
    assert kept(tmp_path) == sorted(objects)
    assert all(len(front.gets(name)) == 1 for name in objects)
    assert cache.statistics.downloads == 0


def test_the_longest_unused_goes_first_and_never_one_that_is_held(tmp_path, objects, front):
    cache, wanted = Cache(tmp_path, 3 * SIZE), items(tmp_path, objects, front)
    held = cache.fetch(wanted[0])
    for number in (1, 2, 1, 3):
        os.close(cache.fetch(wanted[number]))
    assert kept(tmp_path) == [f"train-{number}.arrow" for number in (0, 1, 3)]
    os.close(held)
    os.close(cache.fetch(wanted[4]))
    assert kept(tmp_path) == [f"train-{number}.arrow" for number in (1, 3, 4)]
    assert cache.statistics.evictions == 2


def test_what_is_needed_goes_beyond_the_limit_rather_than_wait_for_ever(tmp_path, objects, front, caplog):
    cache, wanted = Cache(tmp_path, 2 * SIZE), items(tmp_path, objects, front)
    held = [cache.fetch(wanted[0]), cache.fetch(wanted[1])]
    assert cache.fetch(wanted[2], ahead=True) is None
    assert kept(tmp_path) == ["train-0.arrow", "train-1.arrow"]
    held.append(cache.fetch(wanted[2]))
    assert "above its limit" in caplog.text
    for file in held:
        os.close(file)
    os.close(cache.fetch(wanted[3]))
    assert kept(tmp_path) == ["train-2.arrow", "train-3.arrow"]


def test_what_comes_next_is_fetched_in_the_background_and_held(tmp_path, objects, front):
    cache, wanted = Cache(tmp_path, 3 * SIZE), items(tmp_path, objects, front)
    ahead = Ahead(cache)
    ahead.want(wanted[:3])
    wait_for(lambda: len(ahead._held) == 3)
    assert kept(tmp_path) == ["train-0.arrow", "train-1.arrow", "train-2.arrow"]
    assert cache.fetch(wanted[3], ahead=True) is None
    ahead.want(wanted[1:4])
    wait_for(lambda: len(ahead._held) == 3)
    assert kept(tmp_path) == ["train-1.arrow", "train-2.arrow", "train-3.arrow"]
    ahead.close()
    os.close(Cache(tmp_path, 3 * SIZE).fetch(wanted[5]))
    # Of those that came at the same time, either may have been there first.
    assert kept(tmp_path) in [[f"train-{old}.arrow", "train-3.arrow", "train-5.arrow"] for old in (1, 2)]


def test_a_download_that_nobody_wants_any_more_is_broken_off(tmp_path, store, front, monkeypatch):
    """It is closed while the second of its five requests is made, which is the last then."""
    monkeypatch.setattr("nezha_ds.cache.BLOCK", SIZE)
    monkeypatch.setattr(remote, "BLOCK", SIZE)
    data = os.urandom(5 * SIZE)
    store.put("cached/prepared/large", data)
    folder = tmp_path / "key" / "shards"
    folder.mkdir(parents=True)
    ahead = Ahead(Cache(tmp_path, 1 << 30))

    def close_at_the_second(request: proxy.Request, before: int) -> None:
        if request.method == "GET" and front.gets("large"):
            closing.start()
            wait_for(lambda: ahead._cache._closed)

    closing = threading.Thread(target=ahead.close)
    front.rule = close_at_the_second
    ahead.want([Item(f"s3://cached/prepared/large{front.parameters}", folder / "large", len(data), "0")])
    wait_for(lambda: not any(thread.is_alive() for thread in (closing, *ahead._threads)))
    assert len(front.gets("large")) == 2
    assert kept(tmp_path) == []


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, objects, front):
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE // 2}, {SIZE // 2}))"
    )
    worker = start(tmp_path, items(tmp_path, objects, front)[:1], before=code)
    _, told = worker.communicate(timeout=600)
    assert LaunchError.__name__ in told and "File too large" in told and "train-0.arrow" in told
    assert kept(tmp_path) == []


# ----------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["flip", "cut", "reset", "error", "stall", "slow"])
def test_a_fault_that_passes_is_only_a_delay(tmp_path, objects, front, monkeypatch, fault):
    if fault == "stall":
        monkeypatch.setattr(proxy, "STALL", 4.0)
        monkeypatch.setattr(remote, "STALL_SECONDS", 2.0)
    front.rule = lambda request, before: fault if request.method == "GET" and before < 2 else None
    cache, item = Cache(tmp_path, 9 * SIZE), items(tmp_path, objects, front)[0]
    os.close(cache.fetch(item))
    assert has_contents(item, objects)
    assert kept(tmp_path) == ["train-0.arrow"]
    assert cache.statistics.downloads == 1
    # On a busy machine, an answer that comes late is one more that stalls.
    expected = {"slow": [0], "stall": range(2, remote.TRIES)}.get(fault, [2])
    assert cache.statistics.retries in expected


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (
            "flip",
            r"shard s3://cached/prepared/train-0\.arrow is damaged or was replaced: .* copy it to the store again",
        ),
        ("error", r"s3://cached/prepared/train-0\.arrow cannot be read after 7 tries .*; try again later"),
        ("cut", r"s3://cached/prepared/train-0\.arrow cannot be read after 7 tries .*; check AWS_ENDPOINT_URL"),
    ],
)
def test_a_fault_that_stays_is_told_after_a_bounded_number_of_tries(tmp_path, objects, front, fault, told):
    front.rule = lambda request, before: fault if request.method == "GET" else None
    cache = Cache(tmp_path, 9 * SIZE)
    with pytest.raises(DataError, match=told):
        cache.fetch(items(tmp_path, objects, front)[0])
    assert kept(tmp_path) == []
    assert len(front.gets("train-0.arrow")) <= remote.TRIES


def test_a_missing_object_is_named_at_once(tmp_path, objects, front):
    item = Item(f"s3://cached/prepared/gone{front.parameters}", tmp_path / "key" / "shards" / "gone", 1, "0")
    item.path.parent.mkdir(parents=True)
    with pytest.raises(DataError, match=r"shard s3://cached/prepared/gone is missing; copy it to the store again"):
        Cache(tmp_path, 9 * SIZE).fetch(item)


@pytest.mark.parametrize("other", [b"another", b"x" * SIZE, b"x" * 3 * SIZE])
def test_an_object_that_was_replaced_is_refused(tmp_path, store, objects, front, other):
    store.put("cached/prepared/changed", other)
    item = items(tmp_path, objects, front)[0]
    changed = Item(item.uri.replace("train-0.arrow", "changed"), item.path, item.bytes, item.sha256)
    with pytest.raises(DataError, match=r"s3://cached/prepared/changed is damaged or was replaced"):
        Cache(tmp_path, 9 * SIZE).fetch(changed)
    assert kept(tmp_path) == []


# -------------------------------------------------------------------------------------------------- many processes

WORKER = """
import json, os, sys
from pathlib import Path
{before}
from nezha_ds.cache import Cache, Item
folder, limit, wanted = json.load(sys.stdin)
cache = Cache(Path(folder), limit)
print("ready", flush=True)
for uri, path, size, digest in wanted:
    os.close(cache.fetch(Item(uri, Path(path), size, digest)))
print(cache.statistics.downloads)
"""


def start(folder: Path, wanted: list[Item], limit: int = 100 * SIZE, before: str = "") -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER.format(before=before)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    plain = [(item.uri, str(item.path), item.bytes, item.sha256) for item in wanted]
    worker.stdin.write(json.dumps([str(folder), limit, plain]))
    worker.stdin.close()
    worker.stdin = None
    return worker


PATIENT = "from nezha_ds import remote; remote.STALL_SECONDS = 3600"
"""For a worker whose download is held up for as long as a test takes."""


@pytest.mark.parametrize("count", [2, 4])
def test_processes_of_a_node_download_each_file_once_between_them(tmp_path, objects, front, count):
    front.rule = lambda request, before: "slow"
    wanted = items(tmp_path, objects, front)
    workers = [start(tmp_path, wanted[turn:] + wanted[:turn]) for turn in range(count)]
    counts = [int(worker.communicate(timeout=600)[0].split()[-1]) for worker in workers]
    assert sum(counts) == COUNT
    assert [len(front.gets(name)) for name in objects] == [1] * COUNT
    assert all(has_contents(item, objects) for item in wanted)
    assert kept(tmp_path) == sorted(objects)


def test_processes_that_evict_each_others_files_all_get_whole_ones(tmp_path, objects, front):
    wanted = items(tmp_path, objects, front)
    workers = [start(tmp_path, (wanted[turn:] + wanted[:turn]) * 5, limit=2 * SIZE) for turn in range(4)]
    for worker in workers:
        _, told = worker.communicate(timeout=600)
        assert worker.returncode == 0, told
    assert len([name for name in kept(tmp_path) if not name.endswith(PART)]) <= 5
    assert all(has_contents(item, objects) for item in wanted if item.path.exists())


def test_kill_9_in_the_middle_of_a_download_leaves_nothing_in_the_way(tmp_path, objects, front):
    front.rule = lambda request, before: "hold" if request.method == "GET" and before == 0 else None
    wanted = items(tmp_path, objects, front)[:1]
    first = start(tmp_path, wanted, before=PATIENT)
    wait_for(lambda: front.sent > 0, first)
    waiting = start(tmp_path, wanted)
    assert waiting.stdout.readline() == "ready\n"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    told, _ = waiting.communicate(timeout=600)
    assert told.split() == ["1"]
    assert kept(tmp_path) == ["train-0.arrow"]
    assert has_contents(wanted[0], objects)


def test_what_a_killed_process_left_is_removed_by_the_next_that_opens_the_cache(tmp_path, objects, front):
    front.rule = lambda request, before: "hold" if request.method == "GET" else None
    worker = start(tmp_path, items(tmp_path, objects, front)[:1], before=PATIENT)
    wait_for(lambda: front.sent > 0, worker)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert kept(tmp_path) == [f"train-0.arrow{PART}"]
    Cache(tmp_path, SIZE)
    assert kept(tmp_path) == []
