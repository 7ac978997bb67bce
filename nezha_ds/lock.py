"""One process at a time in a folder: a lock that the system takes back when its holder dies, however it dies.

It is flock(2) on a file in the folder, so between hosts it holds as far as the file system carries locks. NFS does: a
Linux client hands flock to the server unless mounted with `nolock` or `local_lock`; the lock of a host that lost its
power lasts as long as its lease, 90 s by default. Lustre does when mounted with `flock`. A file system without locks is
named in a warning, and nothing keeps a second process out there. Programs that the holder starts do not inherit it.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nezha_ds.errors import LaunchError
from nezha_ds.files import make_folder, unwritable


@contextmanager
def holding(path: Path, busy: str, warn: Callable[[str], None]) -> Generator[None]:
    """Hold the lock at `path`, whose folder is made if need be.

    LaunchError with the message `busy` when another process has it; `{holder}` in it becomes that one's host and
    process. `warn` hears why there is no lock, where the file system knows none.
    """
    make_folder(path.parent)
    with _locked(path, busy, warn):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def this_process() -> str:
    """How a process signs what it holds."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _locked(path: Path, busy: str, warn: Callable[[str], None]) -> IO[str]:
    """The file at `path`, open, with our lock on it and our name in it."""
    while True:
        try:
            file = path.open("a+")
        except OSError as error:
            raise unwritable(path, error) from None
        _lock(file, busy, warn)
        if _is_at(file, path):
            _sign(file, path)
            return file
        file.close()  # of a holder that removed it between our two steps


def _lock(file: IO[str], busy: str, warn: Callable[[str], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(file)
        file.close()
        raise LaunchError(busy.format(holder=holder)) from None
    except OSError as error:
        warn(error.strerror or str(error))


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
        file.write(this_process())
        file.flush()
    except OSError as error:
        file.close()
        raise unwritable(path, error) from None
