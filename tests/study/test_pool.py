"""The pool leaves nobody behind: its processes end with the one that started them, whatever ended it."""

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
from rich.console import Console

from tests.helpers.processes import session, wait_for
from tests.study.pool import PROCESSES, Row, run


@dataclass(frozen=True)
class Endless:
    """A model that is never trained."""

    name: str
    began: Path

    @property
    def size(self) -> int:
        return 1

    def fingerprint(self) -> str:
        return self.name

    def make(self, tick: Callable[[int], None]) -> Row:
        (self.began / self.name).touch()
        Event().wait()
        raise AssertionError

    def told(self, row: Row) -> str:
        raise AssertionError


def train_for_ever(folder: Path) -> None:
    """What the process that is ended does."""
    jobs = [Endless(str(number), folder) for number in range(PROCESSES + 1)]
    run(jobs, folder / "models", Console(quiet=True), "steps")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    program = "import sys, pathlib; from tests.study.test_pool import *; train_for_ever(pathlib.Path(sys.argv[1]))"
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], start_new_session=True)
    try:
        wait_for(lambda: len([path for path in tmp_path.iterdir() if path.is_file()]) == PROCESSES, parent)
        parent.send_signal(number)
        assert parent.wait() == -number
        wait_for(lambda: not session(parent.pid))
    finally:
        for pid in session(parent.pid):
            subprocess.run(["kill", "-9", str(pid)], check=False)
