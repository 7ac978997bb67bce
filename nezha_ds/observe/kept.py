"""A file that other programs read, kept by a thread of its own for as long as the run lasts.

It is whole or not there at every moment, and everybody may read it. The thread compares it with what it should say
every `SECONDS`, and soon after news at most once in `LEAST_SECONDS`: so a disk that hangs holds up no step, one that is
full is tried again, and a file that somebody else replaced is set right. At the end it is removed; a killed run leaves
it.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from nezha_ds.errors import LaunchError
from nezha_ds.files import write_atomically

SECONDS = 15.0
"""Between two looks where nothing happens."""
LEAST_SECONDS = 1.0
"""Between any two."""
CLOSE_SECONDS = 5.0
"""How long the end of the run waits for a disk that hangs."""

log = logging.getLogger(__name__)


class KeptFile:
    """Keeps the file until it is closed. A disk that cannot be written is told once each time that this begins."""

    def __init__(self, path: Path, content: Callable[[], bytes]) -> None:
        """`content` is called in the thread that writes."""
        self.path, self._content = path, content
        self._due, self._closed = threading.Event(), threading.Event()
        self._works = True
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {path.name}", daemon=True)
        self._thread.start()

    def hasten(self) -> None:
        """There is news: write it soon."""
        self._due.set()

    def close(self) -> None:
        """Write no more, and remove the file where it still is this run's."""
        self._closed.set()
        self._due.set()
        self._thread.join(CLOSE_SECONDS)

    def _keep(self) -> None:
        written = b""
        while not self._closed.is_set():
            self._due.clear()
            written = self._content()
            self._write(written)
            self._closed.wait(LEAST_SECONDS)
            self._due.wait(SECONDS - LEAST_SECONDS)
        # Here, as whoever closes must not wait for a disk that hangs.
        if self._read() == written:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _read(self) -> bytes | None:
        with contextlib.suppress(OSError):
            return self.path.read_bytes()
        return None

    def _write(self, content: bytes) -> None:
        try:
            if self._read() == content:
                os.utime(self.path)  # by which readers tell how old it is
            else:
                # Prometheus and node_exporter are other users, whatever the umask of this one.
                write_atomically(self.path, content, mode=0o644)
        except (LaunchError, OSError) as error:
            if self._works:
                log.warning("%s; the run goes on without this file", error)
            self._works = False
        else:
            if not self._works:
                log.warning("%s is written again", self.path)
            self._works = True
