"""Whoever dies, and whenever: the pool ends with one line; and what a worker finds arrives whole, however large."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest

from nezha_ds.corpus.executor import processes
from nezha_ds.errors import LaunchError


@dataclass(frozen=True)
class Task:
    size: int
    dies_after: float | None = None


def answer(task: Task) -> bytes:
    """So many bytes; and perhaps the end of the worker, while it sends them."""
    if task.dies_after is not None:
        Timer(task.dies_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return b"x" * task.size


def test_small_and_large_results_arrive_in_order(tmp_path: Path) -> None:
    tasks = [Task(size) for size in (0, 2900, 3100, 100, 10_000_000, 5000)]
    with processes(2, tmp_path) as pool:
        assert [len(result) for result in pool.run(answer, tasks)] == [task.size for task in tasks]
    assert not [*tmp_path.iterdir()]


@pytest.mark.timing
@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.06, 0.09])
@pytest.mark.timeout(600)
def test_a_worker_that_dies_while_it_answers(tmp_path: Path, seconds: float) -> None:
    tasks = [Task(100_000_000, seconds), *[Task(50_000_000)] * 4]
    try:
        with processes(2, tmp_path) as pool:
            results = pool.run(answer, tasks)
    except LaunchError as error:
        assert str(error).startswith("a worker process was killed")
    else:  # it had answered before
        assert [len(result) for result in results] == [task.size for task in tasks]
