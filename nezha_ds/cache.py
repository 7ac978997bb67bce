"""Remote files kept on this node: each downloaded once, whichever ranks ask for it, under a limit of bytes.

    CACHE/lock                     held while room is made
    CACHE/KEY/shards/NAME          a whole file, its hash checked; whoever uses it holds a shared lock on it
    CACHE/KEY/shards/NAME.part     one that is coming, under the exclusive lock of the process that downloads it

All locks are the kernel's (flock): they end with their process, however it ends, so nothing here is ever stale, and a
`.part` that can be locked belongs to nobody. What was used longest ago is removed first, and nothing that is held.
A hit costs 20 us; a download is hashed while it comes.
"""

import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nezha_ds.errors import DataError, NezhaError
from nezha_ds.files import make_folder, unwritable
from nezha_ds.remote import BLOCK, NotThereError, open_file, shown

DOWNLOADS = 4
"""Files that one process fetches ahead at a time: one stream from S3 brings 50 to 100 MB/s."""
DAMAGED_TRIES = 3
"""Downloads of a file whose hash is not the expected one, before the fault is the store's."""
PART = ".part"
TELL_SECONDS = 60
"""How often the log tells what was fetched."""
POLL_SECONDS = 0.02
"""How often one looks again whether another process is done, or has made room."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One remote file and its place in the cache."""

    uri: str
    path: Path
    bytes: int
    sha256: str


@dataclass
class Statistics:
    """What this process has fetched and waited for."""

    downloads: int = 0
    bytes: int = 0
    retries: int = 0
    """Requests that were made again, and downloads that came damaged."""
    evictions: int = 0
    wait_seconds: float = 0.0
    """How long somebody waited for a file that was not there yet."""


class Cache:
    """A folder of downloaded files, shared by the processes of a node."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = make_folder(folder), limit
        self.statistics = Statistics()
        self._counting = threading.Lock()
        self._closed = self._warned = False
        self._told = time.monotonic()
        for part in folder.glob(f"*/shards/*{PART}"):
            _remove(part)

    def fetch(self, item: Item, ahead: bool = False) -> int | None:
        """A descriptor that holds the file until it is closed; downloads it first if need be.

        With `ahead`, None where another process is at it, or there is no room among files that are in use; otherwise
        it waits for the one, and goes beyond the limit for the other: ranks that waited for each other's room would
        wait for ever. DataError when the file cannot be had, LaunchError when the disk is full.
        """
        began = time.monotonic()
        try:
            while True:
                held = _hold(item.path)
                if held is None:
                    held = self._bring(item, ahead)
                if held is not None or ahead:
                    return held
                time.sleep(POLL_SECONDS)
        except OSError as error:
            raise unwritable(item.path, error) from None
        finally:
            if not ahead:
                self._count(wait_seconds=time.monotonic() - began)

    def tell(self) -> None:
        """Log what was fetched since the beginning, if anything was."""
        self._told, now = time.monotonic(), self.statistics
        if now.downloads:
            _log.info(
                "%s: %d shards (%.2f GB) fetched, %d requests repeated, %d shards removed, %.1f s waited",
                self.folder,
                now.downloads,
                now.bytes / 1e9,
                now.retries,
                now.evictions,
                now.wait_seconds,
            )

    def close(self) -> None:
        """Break off what is being downloaded by this object, at the next block."""
        self._closed = True

    def discard(self, item: Item, held: int) -> None:
        """Let go of a file that turned out to be damaged, and remove it unless another process already has."""
        if _is_at(held, item.path):
            item.path.unlink(missing_ok=True)
        os.close(held)

    def _bring(self, item: Item, ahead: bool) -> int | None:
        """Download and hold the file; None where another process is at it, or there is no room ahead of need."""
        part, held = item.path.with_name(item.path.name + PART), None
        # Never waited for: the lock goes along when the file takes its place, where it may be held for long.
        file = _lock(part, wait=False)
        if file is None:
            return None
        try:
            if not item.path.exists() and self._make_room(item, file, part, must=not ahead):
                self._download(item, file)
                part.rename(item.path)
                fcntl.flock(file, fcntl.LOCK_SH)
                # The kernel gives up one lock before it takes the other.
                held = file if _is_at(file, item.path) else None
            return held
        finally:
            if _is_at(file, part):
                part.unlink()
            if held is None:
                os.close(file)

    def _make_room(self, item: Item, file: int, part: Path, must: bool) -> bool:
        """Take the bytes that the item needs, from files that nobody holds if need be; whether there was room."""
        lock = _lock(self.folder / "lock", wait=True)
        assert lock is not None
        try:
            files = [(stat.st_mtime_ns, stat.st_size, path) for path, stat in self._files() if path != part]
            excess = sum(size for _, size, _ in files) + item.bytes - self.limit
            for _, size, path in sorted(files):
                if excess > 0 and _remove(path):
                    excess -= size
                    self._count(evictions=1)
            if excess > 0 and must and not self._warned:
                self._warned = True
                _log.warning(
                    "the cache %s is above its limit of %.1f GB: all that it holds is in use",
                    self.folder,
                    self.limit / 1e9,
                )
            if excess > 0 and not must:
                return False
            # The bytes count from now on, and a full disk shows now.
            os.posix_fallocate(file, 0, item.bytes)
            return True
        finally:
            os.close(lock)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("*/shards/*"):
            with suppress(FileNotFoundError):
                yield path, path.stat()

    def _download(self, item: Item, file: int) -> None:
        for _ in range(DAMAGED_TRIES):
            if self._copy(item, file) == item.sha256:
                os.fdatasync(file)
                self._count(downloads=1, bytes=item.bytes)
                if time.monotonic() - self._told > TELL_SECONDS:
                    self.tell()
                return
            _log.warning("%s came damaged: its hash is not the manifest's; once more", shown(item.uri))
            self._count(retries=1)
        raise DataError(
            f"shard {shown(item.uri)} is damaged or was replaced: its hash is not the manifest's in {DAMAGED_TRIES} "
            "downloads; copy it to the store again, or prepare again"
        )

    def _copy(self, item: Item, file: int) -> str:
        """Bring the bytes; their SHA-256."""
        digest = hashlib.sha256()
        try:
            with (
                open_file(item.uri, lambda: self._count(retries=1)) as source,
                open(file, "wb", closefd=False) as sink,
            ):
                sink.seek(0)
                # One more byte than there should be: a longer file has another hash.
                while sink.tell() <= item.bytes and (block := source.read(BLOCK)):
                    if self._closed:
                        raise DataError(f"{shown(item.uri)} is no longer wanted")
                    sink.write(block)
                    digest.update(block)
                sink.truncate()
        except NotThereError:
            raise DataError(
                f"shard {shown(item.uri)} is missing; copy it to the store again, or prepare again"
            ) from None
        return digest.hexdigest()

    def _count(self, **numbers: float) -> None:
        with self._counting:
            for name, number in numbers.items():
                setattr(self.statistics, name, getattr(self.statistics, name) + number)


class Ahead:
    """Fetches what will be needed next, in threads, and holds it until it is released or no longer wanted."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._asked: Sequence[Item] = ()
        self._wanted: dict[Path, Item] = {}
        self._held: dict[Path, int] = {}
        self._busy: set[Path] = set()
        self._closed = False
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def want(self, items: Sequence[Item]) -> None:
        """What to have from now on, the most urgent first; what is not among it is let go."""
        with self._changed:
            if self._asked == items:
                return
            self._asked = items
            self._wanted = {item.path: item for item in items}
            for path in self._held.keys() - self._wanted.keys():
                os.close(self._held.pop(path))
            # Held before anything is downloaded, so that nothing wanted makes room for something else that is.
            for path in self._wanted.keys() - self._held.keys():
                if (held := _hold(path)) is not None:
                    self._held[path] = held
            if len(self._held) < len(self._wanted):
                self._start()
            self._changed.notify_all()

    def _start(self) -> None:
        if not self._threads:
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(DOWNLOADS)]
            for thread in self._threads:
                thread.start()

    def release(self, path: Path) -> None:
        """The file is somebody else's to hold."""
        with self._changed:
            self._wanted.pop(path, None)
            if path in self._held:
                os.close(self._held.pop(path))

    def close(self) -> None:
        """Stop the threads, each after its present request, and hold nothing."""
        self.want(())
        self._cache.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)

    def _work(self) -> None:
        while (item := self._next()) is not None:
            held, failed = None, False
            try:
                held = self._cache.fetch(item, ahead=True)
            except NezhaError as error:
                # Whoever needs the file will try again and tell.
                if not self._closed:
                    _log.warning("could not fetch ahead: %s", error)
                failed = True
            with self._changed:
                self._busy.discard(item.path)
                wanted = item.path in self._wanted
                if held is not None and wanted:
                    self._held[item.path] = held
                elif held is not None:
                    os.close(held)
                elif failed:
                    self._wanted.pop(item.path, None)
                elif wanted:
                    # Others first, and this one again in a while.
                    self._wanted[item.path] = self._wanted.pop(item.path)
                    self._changed.wait(POLL_SECONDS)

    def _next(self) -> Item | None:
        """The most urgent item that nobody is at; None at the end."""
        with self._changed:
            while not self._closed:
                for path, item in self._wanted.items():
                    if path not in self._held and path not in self._busy:
                        self._busy.add(path)
                        return item
                self._changed.wait()
        return None


# ---------------------------------------------------------------------------------------------------------------- locks


def _hold(path: Path) -> int | None:
    """A descriptor with a shared lock on the file, which counts as used now; None when there is none."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file).st_nlink == 0:  # removed before it was locked
        os.close(file)
        return None
    # The kernel's own clock for files ticks every 4 ms.
    os.utime(file, ns=(time.time_ns(), time.time_ns()))
    return file


def _lock(path: Path, wait: bool) -> int | None:
    """A descriptor with an exclusive lock on the file, made if need be; None when it is another's and `wait` is false.

    Closing it ends the lock.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(file)
            return None
        if _is_at(file, path):
            return file
        # Who had it before has finished it or given it up: the name is another file's by now, or nobody's.
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def _remove(path: Path) -> bool:
    """Remove a file that nobody holds; whether it was."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, path):
            path.unlink()
            return True
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
    finally:
        os.close(file)
    return False
