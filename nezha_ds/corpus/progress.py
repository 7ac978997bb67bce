"""How far the work is: a bar on a terminal, and in a file (a batch job's log) a line every half minute.

prepare  31% · 620.1 MB of 2.0 GB · 9.8 MB/s · ETA 2:21
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from threading import Event, Thread

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from nezha_ds.observe.log import clock

_REFRESH_SECONDS = 0.2
_LINE_SECONDS = 30.0
_WINDOW = 10
"""The rate is that of so many lines: finished tasks that a restart passes over are soon out of it."""


@contextmanager
def watched(label: str, total: int, read: Callable[[], int], shown: bool) -> Generator[None]:
    """Tell on stderr how many of about `total` bytes are read, the rate, and the time left; `read` counts up."""
    terminal = Console(file=sys.stderr)
    animated = terminal.is_terminal and not terminal.is_dumb_terminal
    told = _bar(label, total, read, terminal) if animated else _lines(label, total, read)
    with told if shown else nullcontext():
        yield


@contextmanager
def _following(follow: Callable[[], None], seconds: float) -> Generator[None]:
    """Call `follow` every so often, in a thread."""
    finished = Event()

    def run() -> None:
        while not finished.wait(seconds):
            follow()

    follower = Thread(target=run, daemon=True)
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()


@contextmanager
def _bar(label: str, total: int, read: Callable[[], int], terminal: Console) -> Generator[None]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    before = read()
    with Progress(*columns, console=terminal) as display:
        line = display.add_task(label, total=total)
        with _following(lambda: display.update(line, completed=min(read() - before, total)), _REFRESH_SECONDS):
            yield
        display.update(line, completed=total)  # of archives it was a guess


@contextmanager
def _lines(label: str, total: int, read: Callable[[], int]) -> Generator[None]:
    started, before = time.monotonic(), read()
    seen = deque([(started, 0)], maxlen=_WINDOW + 1)

    def follow() -> None:
        seen.append((time.monotonic(), min(read() - before, total)))
        _tell(_line(label, total, *seen[0], *seen[-1]))

    with _following(follow, _LINE_SECONDS):
        yield
    seconds, done = time.monotonic() - started, read() - before
    _tell(f"{label} 100% · {decimal(done)} in {clock(seconds)} · {_rate(done, seconds)}")


def _line(label: str, total: int, start: float, before: int, now: float, done: int) -> str:
    rate = (done - before) / (now - start)
    left = clock((total - done) / rate) if rate else "unknown"
    share = done / max(total, 1)
    return (
        f"{label} {share:4.0%} · {decimal(done)} of {decimal(total)} · {_rate(done - before, now - start)} · ETA {left}"
    )


def _rate(count: int, seconds: float) -> str:
    return f"{decimal(int(count / max(seconds, 1e-3)))}/s"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the log of a batch job
