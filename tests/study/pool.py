"""Models trained two at a time, each in a process with one thread; stopped at any time, the same call goes on.

A row is a file of its own, written whole when its model is trained and looked at. It carries a fingerprint of all that
it depends on, and one whose fingerprint is another is made again. The processes end when the one that started them is
gone, whatever ended it: a process pool's own notice of that is the pipe that a busy worker does not read.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nezha_ds.files import make_folder, write_atomically

PROCESSES = 2

Row = dict[str, Any]
"""What is known of a trained model, as JSON has it."""


class Job(Protocol):
    """One model to be trained; it travels to another process."""

    @property
    def name(self) -> str:
        """Of its file."""
        ...

    @property
    def size(self) -> int:
        """What its ticks add up to."""
        ...

    def fingerprint(self) -> str:
        """Of all that decides its row, but not of the code that computes it."""
        ...

    def make(self, tick: Callable[[int], None]) -> Row:
        """Train and look; `tick` is told how much was done since the last time."""
        ...

    def told(self, row: Row) -> str:
        """A line for the console."""
        ...


def finished(job: Job, folder: Path) -> Row | None:
    """The row that lies in the folder, if it is this job's."""
    path = _path(folder, job)
    if not path.exists():
        return None
    written: Row = json.loads(path.read_text(encoding="utf-8"))
    return written["result"] if written["fingerprint"] == job.fingerprint() else None


def run(jobs: Sequence[Job], folder: Path, console: Console, unit: str) -> list[Row]:
    """The rows of all jobs, in their order; what lies in the folder already is not made again."""
    todo = [job for job in jobs if finished(job, folder) is None]
    if len(todo) < len(jobs):
        console.print(f"{len(jobs) - len(todo)} of {len(jobs)} models are there already")
    make_folder(folder)
    spawn = multiprocessing.get_context("spawn")
    done_so_far = spawn.Value("q", 0)
    with (
        ProcessPoolExecutor(PROCESSES, spawn, _begin, (done_so_far,)) as pool,
        _bar(console, unit, sum(job.size for job in todo)) as advance,
    ):
        pending = {pool.submit(_work, job, folder): job for job in todo}
        try:
            while pending:
                done, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                advance(done_so_far.value)
                for future in done:
                    job = pending.pop(future)
                    console.print(f"{job.told(future.result())}, {len(pending)} left")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = [finished(job, folder) for job in jobs]
    return [row for row in rows if row is not None]


def _work(job: Job, folder: Path) -> Row:
    result = job.make(_tick)
    row = {"fingerprint": job.fingerprint(), "result": result}
    write_atomically(_path(folder, job), json.dumps(row, indent=1) + "\n")
    return result


def _path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.json"


_done: Any = None
"""Of this process: the count that all processes share."""


def _begin(done: Any) -> None:
    global _done
    _done = done
    Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _tick(count: int) -> None:
    with _done.get_lock():
        _done.value += count


@contextmanager
def _bar(console: Console, unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """What is done of all models, with the time that is left."""
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=total)
        yield lambda completed: progress.update(bar, completed=completed)
