"""One preparation at a time in a folder: a lock that the system takes back when its holder dies, however it dies.

It is flock(2) on a file in the folder, so between hosts it holds as far as the file system carries locks. NFS does: a
Linux client hands flock to the server unless mounted with `nolock` or `local_lock`; the lock of a host that lost its
power lasts as long as its lease, 90 s by default. Lustre does when mounted with `flock`. A file system without locks is
named in a warning, and nothing keeps a second preparation out there. The lock belongs to the process that hands out the
work; its workers stop by themselves when it is gone.
"""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nezha_ds.errors import LaunchError
from nezha_ds.files import make_folder, unwritable

LOCK = ".prepare.lock"


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Keep every other preparation out of the folder. LaunchError names host and process of the one that is in it."""
    path = make_folder(folder) / LOCK
    with _locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str]:
    """The file at `path`, open, with our lock on it and our name in it."""
    while True:
        try:
            file = path.open("a+")
        except OSError as error:
            raise unwritable(path, error) from None
        _lock(file, path)
        if _is_at(file, path):
            _sign(file, path)
            return file
        file.close()  # of a holder that removed it between our two steps


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(file)
        file.close()
        raise LaunchError(
            f"{path.parent} is being prepared by another process ({holder}); wait for it or end it, "
            "or choose another folder"
        ) from None
    except OSError as error:
        print(  # noqa: T201 - also without a progress bar
            f"warning: no lock on {path.parent} ({error.strerror}); start no second preparation in it", file=sys.stderr
        )


def _holder(file: IO[str]) -> str:
    """Who has the lock, as told in the file; a moment later if need be, as the lock comes before the name."""
    for _ in range(200):
        file.seek(0)
        if holder := file.read():
            return holder
        time.sleep(0.05)
    return "unknown"


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: IO[str], path: Path) -> None:
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except OSError as error:
        file.close()
        raise unwritable(path, error) from None
