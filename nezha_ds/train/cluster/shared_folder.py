"""Whether the run's folder does on every node what checkpoints rely on, tried with small files in a folder of its own.

What relies on it, in snapshot.py, checkpoint.py, files.py and lock.py: rank 0 sees every rank's file as soon as that
rank has said that it is written and synced; a rename over an existing file shows readers the old one or the new one,
whole; a folder appears under its name with what is in it; fsync works on files and on folders; and rank 0's flock keeps
other nodes out. Rank 0 plays the writer, every other node's local rank 0 the reader, in step over the meeting.

About a second, and `SEEN_SECONDS` for what never comes. Everything that was written is removed.
"""

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nezha_ds.errors import LaunchError
from nezha_ds.files import sync_folder, write_atomically
from nezha_ds.train.cluster.meeting import Meeting
from nezha_ds.train.cluster.survey import FolderUse

SEEN_SECONDS = 10.0
"""How long one node waits for what another wrote, until it says that it never came. NFS tells of a changed file within
3 s (acregmin), of a changed folder within 30 (acdirmin), unless the file is opened anew, as all of ours are."""
FILE_BYTES = 16 << 20
REPLACEMENTS = 50
PIECE = 1 << 14
"""Bytes of the file that is replaced: a manifest's."""
SMALL_SYNCS = 5


def write_rank(meeting: Meeting, folder: Path, readers: Iterable[int]) -> tuple[FolderUse, dict[int, float]]:
    """Rank 0's part: its own use of the folder, and after how many seconds it saw each reader's file, by rank."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    scratch = there / f".nezha-doctor-{secrets.token_hex(4)}"
    try:
        scratch.mkdir()
        meeting.announce("scratch", str(scratch).encode())
        own = use(scratch, f"node-{meeting.world.rank}")
        able = [rank for rank, word in meeting.collect("written", readers).items() if not word]
        seen = _see_all({rank: scratch / f"node-{rank}" for rank in able})
        _replace_for_readers(meeting, scratch, able)
    except (OSError, LaunchError) as error:
        # Readers that wait for the next word must not wait for ever.
        for word in ("scratch", "replacing", "replaced"):
            if not meeting.announced(word):
                meeting.announce(word)
        return FolderUse(problem=_reason(error)), {}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return own, seen


def read_rank(meeting: Meeting) -> FolderUse:
    """Another node's part: its use of the folder, and what it sees of rank 0's."""
    scratch, rank = Path(meeting.hear("scratch").decode()), meeting.world.rank
    if scratch == Path():
        return FolderUse(problem="rank 0 cannot write there")
    try:
        if not _wait(scratch.is_dir):
            raise FileNotFoundError(errno.ENOENT, "the folder that rank 0 made is not here", str(scratch))
        own = use(scratch, f"node-{rank}")
    except OSError as error:
        meeting.tell("written", b"failed")
        return FolderUse(problem=_reason(error))
    meeting.tell("written", b"")
    torn = _read_while_replaced(meeting, scratch / "replaced")
    start = time.perf_counter()
    whole = _wait(lambda: _version(scratch / "replaced") == REPLACEMENTS and (scratch / "step/manifest").exists())
    seen = time.perf_counter() - start if whole else None
    lock = _try_lock(scratch / "lock")
    meeting.tell("read", b"")
    return replace(own, seen=seen, torn=torn, lock=lock)


def use(scratch: Path, name: str) -> FolderUse:
    """Write and sync a file of 16 MiB, and small ones as checkpoints do. OSError when any of it is refused."""
    data, path = name.encode().ljust(32) * (FILE_BYTES // 32), scratch / name
    start = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    syncs = []
    for _ in range(SMALL_SYNCS):
        start = time.perf_counter()
        with (scratch / f"{name}.small").open("wb") as file:
            file.write(b"small")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(scratch)
        syncs.append(time.perf_counter() - start)
    return FolderUse(free=shutil.disk_usage(scratch).free, rate=FILE_BYTES / seconds, sync=max(syncs))


# --------------------------------------------------------------------------------------------------------------- inside


def _replace_for_readers(meeting: Meeting, scratch: Path, readers: list[int]) -> None:
    """Replace a file while the others read it, let a folder appear, and hold a lock until they have tried it."""
    path = scratch / "replaced"
    write_atomically(path, _content(0))
    meeting.announce("replacing")
    meeting.collect("reading", readers)
    for version in range(1, REPLACEMENTS + 1):
        write_atomically(path, _content(version))
    temporary = scratch / ".step.tmp"
    temporary.mkdir()
    write_atomically(temporary / "manifest", "whole")
    temporary.replace(scratch / "step")
    sync_folder(scratch)
    file = (scratch / "lock").open("w")
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    meeting.announce("replaced")
    meeting.collect("read", readers)
    file.close()


def _read_while_replaced(meeting: Meeting, path: Path) -> int:
    """Reads that found what no reader may find, from rank 0's first version until its word that it is done."""
    meeting.hear("replacing")
    _wait(path.exists)
    meeting.tell("reading", b"")
    torn, newest = 0, 0
    while not meeting.announced("replaced"):
        version = _version(path)
        torn += version is None or version < newest
        newest = max(newest, version or 0)
    return torn


def _version(path: Path) -> int | None:
    """Which version of the replaced file is there; None when there is none, or no whole one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        # A file that was replaced and is gone from NFS's server while it was being read: one opens it again.
        return _version(path) if error.errno == errno.ESTALE else None
    version = int.from_bytes(data[:4], "big")
    return version if data == _content(version) else None


def _content(version: int) -> bytes:
    return version.to_bytes(4, "big") * (PIECE // 4)


def _see_all(paths: dict[int, Path]) -> dict[int, float]:
    """Seconds until rank 0 read each node's file whole; without those that it never did."""
    start, seen = time.perf_counter(), dict[int, float]()

    def look() -> bool:
        for rank, path in paths.items():
            if rank not in seen and _is_whole(path):
                seen[rank] = time.perf_counter() - start
        return len(seen) == len(paths)

    _wait(look)
    return seen


def _is_whole(path: Path) -> bool:
    try:
        return path.read_bytes() == path.name.encode().ljust(32) * (FILE_BYTES // 32)
    except OSError:
        return False


def _try_lock(path: Path) -> str:
    """What rank 0's lock is worth here."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError as error:
        return error.strerror or str(error)
    return "ignored"


def _wait(found: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + SEEN_SECONDS
    while not found():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _reason(error: OSError | LaunchError) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
