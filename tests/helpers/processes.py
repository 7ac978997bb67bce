"""Who lives: what /proc tells of processes that come and go while one looks; and waiting for what they do."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(found: Callable[[], T], process: "subprocess.Popen[Any] | None" = None) -> T:
    """What it finds, once that is true, while the process lives that is to make it so.

    Ten minutes only say that it never will be, however busy the machine.
    """
    end = time.monotonic() + 600
    while not (result := found()):
        assert process is None or process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < end, "ten minutes"
        time.sleep(0.005)
    return result


def session(leader: int) -> list[int]:
    """The living processes of a session."""
    processes = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat")]
    return [pid for pid in processes if _stat(pid)[3] == str(leader) and _stat(pid)[0] != "Z"]


def parent_of(pid: int) -> int:
    """The id of the process that started this one."""
    return int(_stat(pid)[1])


def environment_of(pid: int) -> list[bytes]:
    """The variables of a process, each as `NAME=value`; none of one that has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """State, parent, group, session …; of a process that has ended, the same of none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["Z", "0", "0", "0"]
