"""What each rank of a node is at, now: a row of shared memory a rank, for whoever must tell that a run stands still.

    pulse = Pulse.open(folder, world)        # every rank, before ranks meet
    pulse.hide()                             # once they have met
    pulse.mark("training", step)             # about 1 µs, no lock, no system call but the clock
    pulse.rows()                             # in the exporter's thread: [Beat(rank=0, …), Beat(rank=1, …)]

The file is in /dev/shm, memory of the node: a page on the shared file system of the run's folder would make a step wait
whenever that does. The ranks of a node find it by a name made of the run's folder and of where its ranks meet. Once
they have met it loses its name and lives in their mappings alone, so that whatever kills them leaves nothing, and a
second run in the folder, which will be refused, has a file of its own. A run that is killed before leaves a page of
memory, which the next start on the node removes: a file on which no process holds a lock is nobody's.

A rank that died leaves its row as it was, with its old time. A row is eight numbers of 8 bytes, each of which is read
whole; a reader that comes between two of them sees some of this mark and some of the last.
"""

import fcntl
import logging
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from nezha_ds.observe.metrics import STATES
from nezha_ds.world import World, variable

SHARED = Path("/dev/shm")  # noqa: S108 - files are this user's own, 0600, and no link is followed
NUMBERS = 8
"""A row's, 64 bytes: a cache line, so that ranks do not slow each other."""
RANK, STATE, STEP, TIME, STEPPED = range(5)

log = logging.getLogger(__name__)


class Beat(NamedTuple):
    """A rank's last mark."""

    rank: int
    state: str
    """One of `metrics.STATES`."""
    step: int
    """Steps done."""
    time: float
    """When it was made, in seconds since 1970."""
    stepped: float | None = None
    """When the last step of this attempt ended; None before the first."""


class Pulse:
    """The rows of the ranks of a node, and this rank's pen. Written by one thread of a rank, read by any."""

    def __init__(self, memory: mmap.mmap, world: World, path: Path | None = None, handle: int = -1) -> None:
        self._path, self._handle = path, handle
        self._numbers = memoryview(memory).cast("d")
        self._at = world.local_rank * NUMBERS
        self._numbers[self._at + RANK] = world.rank
        self._named_by_us = path is not None and world.is_node_main
        self.mark("starting", 0)

    @classmethod
    def open(cls, folder: Path, world: World, shared: Path = SHARED) -> "Pulse":
        """The pulse of the run in `folder`, with this rank "starting".

        Without shared memory a warning, and each rank knows of itself alone.
        """
        size = world.local_world_size * NUMBERS * 8
        # The same size under the same name always: a file that shrank would break whoever has it mapped.
        meeting = (variable("MASTER_ADDR"), variable("MASTER_PORT"))
        key = "\n".join((str(folder.absolute()), *meeting, str(world.node), str(size)))
        path = shared / f"{_prefix()}{sha256(key.encode()).hexdigest()[:16]}"
        try:
            _sweep(shared)
            handle = _open(path, size)
            return cls(mmap.mmap(handle, size), world, path, handle)
        except OSError as error:
            log.warning("no shared memory in %s (%s); the exporter tells of its own rank alone", shared, error.strerror)
            return cls(mmap.mmap(-1, size), world)

    def hide(self) -> None:
        """Take the file's name away; once all ranks of the node have opened it."""
        if self._named_by_us and self._path:
            self._named_by_us = False
            with suppress(OSError):
                self._path.unlink()

    def mark(self, state: str, step: int) -> None:
        """This rank is at `state`, one of STATES, after `step` steps, and got on just now."""
        numbers, at, now = self._numbers, self._at, time.time()
        # Where a resume begins is not a step that was made.
        if step > numbers[at + STEP] and numbers[at + STATE]:
            numbers[at + STEPPED] = now
        numbers[at + STEP] = step
        numbers[at + STATE] = STATES.index(state)
        numbers[at + TIME] = now

    @property
    def own(self) -> Beat:
        """This rank's."""
        return self._beat(self._at)

    def rows(self) -> list[Beat]:
        """Those of the node's ranks that have opened it, by local rank."""
        starts = range(0, len(self._numbers), NUMBERS)
        return [self._beat(at) for at in starts if self._numbers[at + TIME]]

    def close(self) -> None:
        """Leave nothing behind; the rows can be read until the process ends."""
        self.hide()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _beat(self, at: int) -> Beat:
        rank, state, step, when, stepped = self._numbers[at : at + 5].tolist()
        return Beat(int(rank), STATES[int(state)], int(step), when, stepped or None)


def _prefix() -> str:
    return f"nezha-pulse-{os.getuid()}-"


def _open(path: Path, size: int) -> int:
    """A handle on the file, locked for as long as the process lives."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Memory that is promised now: a full /dev/shm would else kill the rank at its first mark.
            os.posix_fallocate(handle, 0, size)
            fcntl.flock(handle, fcntl.LOCK_SH)
            if os.fstat(handle).st_nlink:
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # swept by another rank between our opening and our lock


def _sweep(shared: Path) -> None:
    """Remove what runs of this user left that were killed before their ranks had met: files that nobody has locked."""
    for handle, path in _handles(shared):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except OSError:
            pass
        finally:
            os.close(handle)


def _handles(shared: Path) -> Iterator[tuple[int, Path]]:
    for path in shared.glob(f"{_prefix()}*"):
        with suppress(OSError):
            yield os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), path
