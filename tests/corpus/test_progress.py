"""A bar that moves on a terminal, lines in a file; both with rate and time left."""

import os
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from nezha_ds import cli
from nezha_ds.corpus import prepare as module
from nezha_ds.corpus import progress
from nezha_ds.corpus.encode import Receipt, Work, encode
from nezha_ds.corpus.progress import watched
from tests.helpers import preparation
from tests.helpers.processes import wait_for


class Terminal:
    """A pseudo-terminal; what was written to it."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.file = os.fdopen(slave, "w")
        self._read_so_far = b""
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 4096):
                self._read_so_far += data
        except OSError:  # the other end is closed
            pass

    def close(self) -> str:
        self.file.close()
        self._reader.join()
        os.close(self._master)
        return self.shown()

    def shown(self) -> str:
        """What was written until now."""
        return self._read_so_far.decode(errors="ignore")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_a_bar_on_a_terminal(tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line, with tasks that wait until they are seen."""

    def encode_and_be_seen(work: Work) -> Receipt:
        receipt = encode(work)
        if work.number < 3:
            wait_for(lambda: len({*amounts(terminal.shown())}) > work.number)
        return receipt

    monkeypatch.setattr(module, "_SMALLEST_TASK", 20_000)
    monkeypatch.setattr(module, "encode", encode_and_be_seen)
    text = preparation.statutes(tmp_path / "a.txt", 300)
    monkeypatch.setattr(sys, "stderr", terminal.file)
    assert cli.main(["prepare", str(text), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    shown = terminal.close()
    assert all(first <= second for first, second in pairwise(amounts(shown)))
    assert re.search(r"\d+(\.\d+)? ([kM]B|bytes)/s", shown)
    assert re.search(r"\d:\d\d:\d\d", shown)
    assert "━" in shown
    assert "\x1b[?25h" in shown  # the cursor is shown again
    assert "out is complete: 300 documents" in plain(shown)


def plain(shown: str) -> str:
    """Without the marks that move and colour."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)


def amounts(shown: str) -> list[float]:
    """How far the bar was, each time that it was drawn."""
    return [float(amount) for amount in re.findall(r"([\d.]+)/[\d.]+ kB", plain(shown))]


def test_lines_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At a steady megabyte a second, as a clock tells it that is moved by hand."""
    now, follow = [1000.0], []

    @contextmanager
    def by_hand(tell: Callable[[], None], seconds: float) -> Generator[None]:
        follow.append(tell)
        yield

    monkeypatch.setattr(progress, "_following", by_hand)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with watched("prepare", 200_000_000, lambda: 500 + int((now[0] - 1000) * 1e6), shown=True):
        for _ in range(2):
            now[0] += progress._LINE_SECONDS
            follow[0]()
        now[0] += 3
    assert capsys.readouterr().err.splitlines() == [
        "prepare  15% · 30.0 MB of 200.0 MB · 1.0 MB/s · ETA 2:50",
        "prepare  30% · 60.0 MB of 200.0 MB · 1.0 MB/s · ETA 2:20",
        "prepare 100% · 63.0 MB in 1:03 · 1.0 MB/s",
    ]


def test_nothing_is_known_of_the_rate_before_a_task_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On ranks, tasks count when they end."""
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.01)
    looks: list[None] = []
    with watched("prepare", 1000, lambda: looks.append(None) or 0, shown=True):
        wait_for(lambda: len(looks) >= 3)  # at the beginning, for the first line, and for the next
    assert capsys.readouterr().err.startswith("prepare   0% · 0 bytes of 1.0 kB · 0 bytes/s · ETA unknown\n")


def test_silence_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with watched("prepare", 1000, lambda: 0, shown=False):
        pass
    assert capsys.readouterr().err == ""
