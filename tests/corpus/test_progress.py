"""A bar that moves on a terminal, lines in a file; both with rate and time left."""

import os
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest

from nezha_ds import cli
from nezha_ds.corpus import prepare as module
from nezha_ds.corpus import progress
from nezha_ds.corpus.progress import watched
from tests.helpers import preparation


class Terminal:
    """A pseudo-terminal; what was written to it."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.file = os.fdopen(slave, "w")
        self._shown: list[bytes] = []
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 4096):
                self._shown.append(data)
        except OSError:  # the other end is closed
            pass

    def close(self) -> str:
        self.file.close()
        self._reader.join()
        os.close(self._master)
        return b"".join(self._shown).decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_a_bar_on_a_terminal(tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line, with words found slowly enough to be seen."""
    monkeypatch.setattr(module, "_SMALLEST_TASK", 20_000)
    text = preparation.statutes(tmp_path / "a.txt", 300)
    options = ("--out", str(tmp_path / "out"), "--workers", "1", "--segmenter", "jieba")
    monkeypatch.setattr(sys, "stderr", terminal.file)
    assert cli.main(["prepare", str(text), *options]) == 0
    shown = terminal.close()
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    amounts = [float(amount) for amount in re.findall(r"([\d.]+)/[\d.]+ kB", plain)]
    assert all(first <= second for first, second in pairwise(amounts))
    assert len({*amounts}) >= 3
    assert re.search(r"\d+(\.\d+)? [kM]B/s", shown)
    assert re.search(r"0:00:\d\d", shown)
    assert "━" in shown
    assert "\x1b[?25h" in shown  # the cursor is shown again
    assert "out is complete: 300 documents" in plain


def test_lines_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.1)
    started = time.monotonic()
    with watched("prepare", 2_000_000, lambda: 500 + int((time.monotonic() - started) * 1e6), shown=True):
        time.sleep(0.55)
    *lines, last = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 5
    for line in lines:
        assert re.fullmatch(r"prepare +\d+% · [\d.]+ kB of 2.0 MB · (9\d\d\.\d kB|1\.\d MB)/s · ETA 0:0[12]", line), (
            line
        )
    assert re.fullmatch(r"prepare 100% · [56]\d\d\.\d kB in 0:01 · (9\d\d\.\d kB|1\.\d MB)/s", last), last


def test_nothing_is_known_of_the_rate_before_a_task_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On ranks, tasks count when they end."""
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    with watched("prepare", 1000, lambda: 0, shown=True):
        time.sleep(0.08)
    assert capsys.readouterr().err.startswith("prepare   0% · 0 bytes of 1.0 kB · 0 bytes/s · ETA unknown\n")


def test_silence_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with watched("prepare", 1000, lambda: 0, shown=False):
        pass
    assert capsys.readouterr().err == ""
