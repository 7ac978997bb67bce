"""Ends a run that hangs, with the place of every thread in the log: a collective that one rank never enters, a file
system that answers no more.

A thread looks ten times within the limit at what the main thread is at. It counts its own looks, not the clock: time in
which the whole process stood still, because a scheduler suspended the job, is no time, and a busy machine makes the
limit longer, never shorter. The main thread only leaves a note at the beginning and the end of each section, which
costs 1 µs; it takes no lock and is never interrupted.

When a limit is reached, the stacks go to stderr by faulthandler, which needs neither the main thread nor a file, and
the process ends with `Exit.HUNG`. The other ranks of a lost collective reach their limits too, as the last step began
for all at once; each waits a quarter of its limit, 5 to 30 s, before it leaves, for the loss of a rank would break
the others off before they have told where they stand. A launcher that kills 30 s after it asked leaves them that time.
"""

import faulthandler
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from nezha_ds.errors import Exit
from nezha_ds.world import World

LOOKS = 10
"""How often it looks within a limit."""
SLOW = 10
"""How many times the limit is given to what may compile or write: the first step, a first evaluation, a save."""
LINGER_SECONDS = (5.0, 30.0)
"""Least and most."""


@dataclass(frozen=True, eq=False)
class _Section:
    """What the main thread is at; a new object for each, so that the watcher sees a change."""

    name: str
    looks: int
    """How many it may last."""


class Watchdog:
    """Watches one thread of one rank; without a limit it does nothing and has no thread."""

    def __init__(self, seconds: float, world: World) -> None:
        """`seconds` is the limit of a step; 0: none."""
        self._seconds, self._world = seconds, world
        self._section: _Section | None = None
        self._seen: _Section | None = None
        self._looks = 0
        self._closed = threading.Event()
        self._warm: set[str] = set()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self, name: str, slow: bool = False) -> Generator[None]:
        """End the process when the block takes longer than a step may, or `SLOW` times that if it is slow by nature.

        The first block of a name is.
        """
        self.begin(name, slow)
        try:
            yield
        finally:
            self._section = None
            self._warm.add(name)

    def begin(self, name: str, slow: bool = False) -> None:
        """A part of the block begins, with a limit of its own: the next batch of an evaluation."""
        self._section = _Section(name, LOOKS * (SLOW if slow or name not in self._warm else 1))

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def look(self) -> str | None:
        """What the thread does `LOOKS` times within the limit of a step: the name of a section that is over its own."""
        section = self._section
        self._seen, self._looks = section, self._looks + 1 if section is self._seen else 0
        return section.name if section and self._looks >= section.looks else None

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds / LOOKS):
            if name := self.look():
                self._end(name)

    def _end(self, name: str) -> None:
        # By another thread: where stderr is on the file system that hangs, so would this one.
        threading.Thread(target=self._tell, args=(name,), daemon=True).start()
        least, most = LINGER_SECONDS
        self._closed.wait(min(max(self._seconds / 4, least), most))
        os._exit(Exit.HUNG)

    def _tell(self, name: str) -> None:
        limit = self._looks * self._seconds / LOOKS
        told = (
            f"nezha-ds: rank {self._world.rank} of {self._world.world_size} hangs: {name} took longer than "
            f"{limit:g} s (train.step_seconds); ending it. Where each thread stands:\n"
        )
        os.write(2, told.encode() + _stacks())


def _stacks() -> bytes:
    """Every thread's stack, the latest call first, by way of memory: in one piece, however many ranks write."""
    handle = os.memfd_create("stacks")
    faulthandler.dump_traceback(handle, all_threads=True)
    size = os.lseek(handle, 0, os.SEEK_END)
    return os.pread(handle, size, 0)
