"""Faults inside an unchanged program: Python runs this file in every process that has its folder on PYTHONPATH.

FAULTS is a JSON list of [when, what]: `when` is a pattern over what Python is about to do with a file, as the audit
events tell it ("os.mkdir PATH", "open PATH w", "os.rename FROM TO", "os.remove PATH", "shutil.rmtree PATH"); `what` is
the name of a function below, with arguments. They come one after the other: each waits for the one before it. So a
process dies exactly between two operations, whichever code performs them, in whichever thread.

FAULT_RANK is the rank that has them (0 when left out). CLOCK=jumping moves the wall clock by years with every look.
"""

import itertools
import json
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

YEARS = (0, -40, 30, -10, 200)
WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree")


def kill() -> None:
    """kill -9 of this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Stand still until somebody sends SIGCONT, or SIGKILL."""
    os.kill(os.getpid(), signal.SIGSTOP)


def limit(size: int) -> None:
    """As if the disk had so much room for each file. Python ignores the signal; the write fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def unlimit() -> None:
    """Room again."""
    limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])


def mode(path: str, bits: int) -> None:
    """The permissions of a folder."""
    Path(path).chmod(bits)


def go_on() -> None:
    """Nothing: only the next fault waits for this."""


WHAT = {function.__name__: function for function in (kill, stop, limit, unlimit, mode, go_on)}


def have_faults(faults: list[list[Any]]) -> None:
    """Wait for the moment of the first fault, then for the next one's."""
    waiting = [(re.compile(when), WHAT[what], arguments) for when, what, *arguments in faults]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED and waiting:
            when, what, own = waiting[0]
            told = " ".join([event, *(str(one) for one in arguments[: 1 if event == "shutil.rmtree" else 2])])
            if when.search(told):
                waiting.pop(0)
                what(*own)

    sys.addaudithook(watch)


def jump() -> None:
    """From now on the wall clock is off by years, and by others at the next look."""
    real, real_ns, years = time.time, time.time_ns, itertools.cycle(YEARS)
    time.time = lambda: real() + next(years) * 365.25 * 86400
    time.time_ns = lambda: real_ns() + next(years) * 31_557_600 * 10**9


if os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK", "0") and os.environ.get("FAULTS"):
    have_faults(json.loads(os.environ["FAULTS"]))
if os.environ.get("CLOCK") == "jumping":
    jump()
