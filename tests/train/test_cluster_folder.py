"""The run's folder as two nodes of the doctor see it: writer and reader in two threads, folders that lie."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from nezha_ds.errors import LaunchError
from nezha_ds.train.cluster import shared_folder
from nezha_ds.train.cluster.meeting import Meeting
from nezha_ds.train.cluster.survey import FolderUse
from nezha_ds.world import World
from tests.helpers.ranks import free_port


@pytest.fixture
def meetings(monkeypatch: pytest.MonkeyPatch) -> list[Meeting]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    return [Meeting(World(rank, 2, 0, 1, rank), 600, 600) for rank in range(2)]


def both(meetings: list[Meeting], folder: Path) -> tuple[FolderUse, dict[int, float], FolderUse]:
    """What rank 0 finds, when it saw the other's file, and what the other finds."""
    with ThreadPoolExecutor(2) as pool:
        writer = pool.submit(shared_folder.write_rank, meetings[0], folder, [1])
        reader = pool.submit(shared_folder.read_rank, meetings[1])
        return (*writer.result(600), reader.result(600))


def test_a_sound_folder(meetings, tmp_path):
    own, seen, other = both(meetings, tmp_path / "runs" / "not yet there")
    for use in (own, other):
        assert use.problem == "" and use.rate > 0 and use.sync > 0 and use.free > 0
    assert seen.keys() == {1}
    assert (other.torn, other.lock) == (0, "held") and other.seen is not None
    assert [*tmp_path.iterdir()] == []


def test_a_folder_whose_renames_are_not_atomic(meetings, tmp_path, monkeypatch):
    """As some object stores behind a mount: the old file goes, and the new one comes a moment later."""
    version, reads = shared_folder._version, [0]

    def read(path):
        reads[0] += 1
        return version(path)

    def replace(path, content):
        if path.name == "replaced" and path.exists():
            path.unlink()
            before = reads[0]
            while reads[0] < before + 2:  # one read has begun after the file was gone
                pass
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    monkeypatch.setattr(shared_folder, "_version", read)
    monkeypatch.setattr(shared_folder, "write_atomically", replace)
    _, _, other = both(meetings, tmp_path)
    assert other.torn >= shared_folder.REPLACEMENTS


@pytest.mark.parametrize(("answer", "told"), [(None, "ignored"), (errno.ENOLCK, os.strerror(errno.ENOLCK))])
def test_a_folder_without_locks(meetings, tmp_path, monkeypatch, answer, told):
    def flock(*_):
        if answer:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(shared_folder, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=0, LOCK_NB=0))
    assert both(meetings, tmp_path)[2].lock == told


def test_a_folder_that_cannot_be_written(meetings):
    own, seen, other = both(meetings, Path("/proc/runs"))
    assert "/proc/.nezha-doctor-" in own.problem and seen == {}
    assert other.problem == "rank 0 cannot write there"


def test_a_folder_that_refuses_to_sync_on_one_node(meetings, tmp_path, monkeypatch):
    use = shared_folder.use

    def refuse(scratch, name):
        if name == "node-1":
            raise OSError(errno.EINVAL, "Invalid argument", "fsync")
        return use(scratch, name)

    monkeypatch.setattr(shared_folder, "use", refuse)
    own, seen, other = both(meetings, tmp_path)
    assert (own.problem, seen, other.problem) == ("", {}, "fsync: Invalid argument")


def test_a_folder_that_fails_for_rank_0_on_the_way_keeps_nobody_waiting(meetings, tmp_path, monkeypatch):
    def full(*_):
        raise LaunchError("cannot write there (No space left on device)")

    monkeypatch.setattr(shared_folder, "write_atomically", full)
    monkeypatch.setattr(shared_folder, "SEEN_SECONDS", 0.1)
    own, _, other = both(meetings, tmp_path)
    assert "No space left" in own.problem
    assert other.seen is None


def test_a_word_that_never_comes_and_a_port_that_is_none(meetings, monkeypatch):
    assert meetings[0].collect("nothing", [1], seconds=0) == {}
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(LaunchError, match="MASTER_PORT='http' is not a port"):
        Meeting(World(1, 2, 0, 1, 1), 1, 1)
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.77")
    with pytest.raises(LaunchError, match=r"is no address of .*, where rank 0 runs"):
        Meeting(World(0, 2, 0, 1, 0), 1, 1)
