"""Tasks on one process or many, with a bar that moves while they run.

The seam is `concurrent.futures.Executor`: in place for one worker (a debugger and Ctrl-C reach the task itself), a pool
of spawned processes for more. A worker ignores Ctrl-C, which its parent answers for all; it stops at the next megabyte
when told to, and dies within a moment of its parent, even when that was killed.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from threading import Event, Thread
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from nezha_ds.errors import LaunchError

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

# Not forked: tokenizers and pyarrow hold threads that a fork would cut off.
_SPAWN = multiprocessing.get_context("spawn")
_REFRESH_SECONDS = 0.2


class StoppedError(Exception):
    """Ends a worker's task after another task failed or the user pressed Ctrl-C; nobody sees it."""


class Gauge:
    """How many bytes all processes have read, and whether they should stop."""

    def __init__(self) -> None:
        self._bytes = _SPAWN.Value("q", 0)
        self._stopping = _SPAWN.Event()

    def add(self, count: int) -> None:
        """Count bytes; StoppedError when the work is called off."""
        if self._stopping.is_set():
            raise StoppedError
        with self._bytes.get_lock():
            self._bytes.value += count

    def read(self) -> int:
        """The bytes counted so far."""
        return self._bytes.value

    def call_off(self) -> None:
        """Make every task end at its next `add`."""
        self._stopping.set()


_gauge: Gauge | None = None
"""This process's own, set when it starts to work."""


def count_bytes(count: int) -> None:
    """What a task calls, about every megabyte that it has read."""
    if _gauge is not None:
        _gauge.add(count)


def run_all(function: Callable[[T], R], tasks: Sequence[T], workers: int, gauge: Gauge) -> list[R]:
    """The function's result for each task, in order. The first failure calls the others off and is raised.

    LaunchError when a worker was killed.
    """
    with _executor(min(workers, len(tasks)), gauge) as executor:
        try:
            futures = [executor.submit(function, task) for task in tasks]
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise LaunchError(
                "a worker process was killed, most likely for want of memory; run again with fewer workers: "
                "what is finished stays"
            ) from None
        except BaseException:
            gauge.call_off()
            executor.shutdown(cancel_futures=True)
            raise


def _executor(workers: int, gauge: Gauge) -> Executor:
    if workers > 1:
        return ProcessPoolExecutor(workers, mp_context=_SPAWN, initializer=_start_worker, initargs=(gauge,))
    _use(gauge)
    return _InPlace()


class _InPlace(Executor):
    """Runs each task as it is submitted; what it raises reaches the caller at once."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _start_worker(gauge: Gauge) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_die_with_parent, daemon=True).start()
    _use(gauge)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _use(gauge: Gauge) -> None:
    global _gauge
    _gauge = gauge


@contextmanager
def bar(label: str, total: int, gauge: Gauge, shown: bool) -> Generator[None]:
    """A progress bar on stderr with megabytes read of about `total` bytes, rate and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), disable=not shown) as progress:
        line, finished = progress.add_task(label, total=total), Event()

        def follow() -> None:
            while not finished.wait(_REFRESH_SECONDS):
                progress.update(line, completed=min(gauge.read(), total))

        follower = Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
            progress.update(line, completed=total)  # of archives it was a guess
        finally:
            finished.set()
            follower.join()
