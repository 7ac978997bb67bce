"""Ranks that stop when their launcher dies, however it dies: the kernel tells them.

PR_SET_PDEATHSIG (prctl(2)) sends SIGTERM to a rank when the thread that started it ends; deepspeed's launch.py, ours,
slurmstepd and mpirun start ranks from their main threads. SIGTERM and not SIGKILL: a rank whose launcher was killed
stops as after any other signal, all ranks save together, and nothing is lost.

A single process that no launcher started is left alone: `nohup` and `&` are meant to outlive their shell.

deepspeed puts two processes above a rank, the runner and launch.py, and a signal to the runner, which is what the user
started, kills it alone. So a thread waits for the end of the process above launch.py too (pidfd_open(2), Linux 5.3).
"""

import ctypes
import logging
import os
import select
import signal
import threading
from pathlib import Path

from nezha_ds.world import launched_by, under_launcher

PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def stop_with_launcher() -> None:
    """Have this rank sent SIGTERM when its launcher ends; nothing outside a launcher. Call it early, in any thread."""
    if not under_launcher():
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # A launcher that died before the call sends nothing any more. Ours says who it is; of others' deaths the 0.1 s
    # until here stay unseen.
    if os.getppid() != (launched_by() or parent):
        _stop()
    elif is_deepspeed(parent) and (runner := parent_of(parent)) > 1:
        threading.Thread(target=_wait_for_end, args=(runner,), name="runner", daemon=True).start()


def is_deepspeed(pid: int) -> bool:
    """Whether the process is deepspeed's launch.py."""
    try:
        return b"deepspeed.launcher.launch" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The id of the process that started this one; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _wait_for_end(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        _stop()
    except OSError as error:
        log.info("whether the deepspeed runner lives cannot be seen here (%s)", error.strerror)
    else:
        select.select([handle], [], [])
        _stop()


def _stop() -> None:
    log.warning("the launcher is gone")
    os.kill(os.getpid(), signal.SIGTERM)
