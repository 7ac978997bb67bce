"""kill -9, several times over, of whoever: the preparation ends, says so, and another one goes on to the same bytes."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from subprocess import Popen

import pytest

from tests.helpers import preparation, processes

pytestmark = pytest.mark.timing

# Some 45 tasks of 20 ms: jieba is 18 times slower than rjieba, so that a moment can be hit.
SETTINGS = ("--segmenter", "jieba")
TASK_BYTES = 22_000
OPEN_TASKS = 10
"""How many more an attempt can finish than the one before: it has not ended when it is killed, however late that is."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preparation.statutes(tmp_path_factory.mktemp("text") / "a.txt", 300)


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a preparation writes that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    code, told = preparation.run(text, "--out", out, *SETTINGS, "--workers", 1, TASK_BYTES=TASK_BYTES)
    assert code == 0, told
    return preparation.contents(out)


Victim = Callable[["Popen[str]"], int]
"""Whom to kill, by id, of a preparation that is under way."""


def parent(process: "Popen[str]") -> int:
    return process.pid


def worker(process: "Popen[str]") -> int:
    """A process that the pool's server has forked."""

    def both() -> list[int]:
        workers = [pid for pid in processes.session(process.pid) if is_worker(pid, process.pid)]
        return workers if len(workers) == 2 else []

    return processes.wait_for(both, process)[0]


def is_worker(pid: int, leader: int) -> bool:
    server = processes.parent_of(pid)
    return server != leader and processes.parent_of(server) == leader


def rank(number: int) -> Victim:
    def find(process: "Popen[str]") -> int:
        mark = f"OMPI_COMM_WORLD_RANK={number}".encode()
        (found,) = [pid for pid in processes.session(process.pid) if mark in processes.environment_of(pid)]
        return found

    return find


def disturb(text: Path, out: Path, victims: Sequence[Victim], messages: Sequence[str], *how: object) -> None:
    """One attempt for each victim, which dies at some moment of it; what was finished before it stays as it is."""
    launcher = preparation.MPIRUN if "mpi" in how else ()
    for number, (victim, message) in enumerate(zip(victims, messages, strict=True)):
        before = preparation.finished(out)
        sizes = {"TASK_BYTES": TASK_BYTES, "OPEN_TASKS": OPEN_TASKS * (number + 1)}
        process = preparation.start(text, "--out", out, *SETTINGS, *how, launcher=launcher, **sizes)
        processes.wait_for(lambda before=before: preparation.finished(out).keys() > before.keys(), process)
        time.sleep(sha256(f"{number}".encode()).digest()[0] / 255 * 0.1)
        os.kill(victim(process), signal.SIGKILL)
        code, told = preparation.finish(process)
        assert code != 0
        assert message in told
        assert "Traceback" not in told
        processes.wait_for(lambda process=process: not processes.session(process.pid))  # nobody is left behind
        assert not (out / "manifest.json").exists()
        assert {path: path.stat().st_mtime_ns for path in before} == before


def goes_on(text: Path, out: Path, whole: dict[str, bytes], *how: object) -> None:
    before = preparation.finished(out)
    assert len(before) >= 3
    launcher = preparation.MPIRUN if "mpi" in how else ()
    code, told = preparation.run(text, "--out", out, *SETTINGS, *how, launcher=launcher, TASK_BYTES=TASK_BYTES)
    assert code == 0, told
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert preparation.contents(out) == whole


def test_killed_processes(text: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    killed = "a worker process was killed, most likely for want of memory; run again with fewer workers"
    disturb(text, tmp_path / "out", (worker, parent, worker), (killed, "", killed), "--workers", 2)
    goes_on(text, tmp_path / "out", whole, "--workers", 2)


def test_killed_ranks(text: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Of rank 0, which hands out work; of another; of mpirun itself."""
    noticed = "noticed that process rank {} with PID"
    messages = (noticed.format(1), noticed.format(0), "")
    disturb(text, tmp_path / "out", (rank(1), rank(0), parent), messages, "--executor", "mpi")
    goes_on(text, tmp_path / "out", whole, "--executor", "mpi")
