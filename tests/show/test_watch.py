"""`nezha-ds watch`: frames that fit, whatever is in them; and a real terminal, in which a run begins, goes on, ends."""

import fcntl
import io
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nezha_ds import cli
from nezha_ds.observe.journal import MetricsFile
from nezha_ds.pages.curve import Curve
from nezha_ds.show.braille import Line, brief, chart, spark
from nezha_ds.show.frame import Look, frame
from nezha_ds.show.state import state_of
from nezha_ds.show.story import Story
from nezha_ds.show.watch import Watch
from tests.helpers import ranks
from tests.helpers.processes import wait_for
from tests.observe.samples import copy, evaluation, events, record, save, start, stop, trouble

NOW = 5000.0


def shown(some, width, height=50, notes=()):
    story = Story()
    for event in some:
        story.take(event)
    screen = Console(file=io.StringIO(), width=width, force_terminal=False, legacy_windows=False)
    screen.print(frame(Look(story, "demo", state_of(story, NOW), NOW, width, height, notes)))
    return screen.file.getvalue()


WHOLE = [
    start(time=900.0),
    *(record(step, loss=9.0 - step / 20, skipped_steps=int(step == 30)) for step in range(10, 101, 10)),
    evaluation(50, loss=5.5),
    evaluation(50, loss=5.0, split="heldout/news"),
    save(50),
    copy(50),
    save(100, ok=False),
    trouble(95),
    stop(100),
]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_frame_tells_everything_and_fits(width):
    text = shown(WHOLE, width)
    assert max(map(len, text.splitlines())) <= width
    for piece in (
        "demo",
        "step 100 of 2,000",
        "5%",
        "left",
        "━ train 4",
        "held out 5.5",
        "loss nsp",
        "accuracy mlm",
        "learning rate",
        "gradient norm",
        "loss scale, 1 overflows",
        "tokens/s",
        "MFU",
        "mask rate",
        "data wait",
        "news",
        "checkpoint step 50",
        "1 saves failed",
        "1 made, 0 failed",
        "is a spike",
        "SIGTERM",
    ):
        assert piece in text, piece
    assert re.search("[\u2801-\u28ff]", text)
    assert ("news" in text.split("accuracy mlm")[1].split("\n")[0]) is False


def test_two_columns_from_a_hundred_on():
    narrow, wide = shown(WHOLE, 99), shown(WHOLE, 100)
    assert len(narrow.splitlines()) > len(wide.splitlines())


@settings(max_examples=60, deadline=None)
@given(st.lists(events, max_size=12), st.sampled_from([60, 100, 200]))
def test_hostile_events_are_drawn_as_text_and_fit(some, width):
    text = shown(some, width, notes=("\x1b[2J[red]note[/red]",))
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "[red]note[/red]" in text


def test_a_curve_keeps_a_spike_of_one_step():
    x = list(range(100_000))
    y = [1.0] * len(x)
    y[77_777] = 20.0
    columns = Curve(*map(np.array, (x, y)))
    top, *_, axis = [row.plain for row in chart([Line(columns, "")], 60, 8)]
    assert [letter for letter in top.removeprefix("   20 ") if letter != " "]
    assert axis.split() == ["0", "99,999"]


@pytest.mark.parametrize("y", [[], [math.nan], [math.inf, 1.0], [0.0], [5.0, 5.0], [1e308, -1e308], [1e-300, 1e300]])
def test_curves_of_any_numbers_are_drawn(y):
    array = np.array
    rows = chart([Line(Curve(array(range(len(y)), float), array(y, float)), "")], 40, 6)
    assert all(len(row.plain) <= 40 for row in rows)
    assert any("\u2800" < letter <= "\u28ff" for row in rows for letter in row.plain) == any(map(math.isfinite, y))


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"),
        ([0, 9, 0, 0, 0, 0, 0, 0], "█▁▁▁"),
        ([1, math.nan, 3], "▁ █"),
        ([math.inf], ""),
    ],
)
def test_a_line_of_blocks(values, drawn):
    width = len(drawn) or 4
    assert spark(values, width) == drawn


@given(st.floats(-1e307, 1e307) | st.sampled_from([math.inf, -math.inf, math.nan]))
def test_a_brief_number_is_the_number(value):
    assert len(brief(value)) <= 9
    assert math.isclose(float(brief(value)), value, rel_tol=0.06, abs_tol=1e-320) or math.isnan(value)


def test_once_waits_for_nothing(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path / "not_there"), "--once"]) == 0
    assert "waiting" in capsys.readouterr().out
    journal = MetricsFile(tmp_path / "copied.jsonl")
    for event in WHOLE:
        journal.update(event)
    assert cli.main(["watch", str(journal.path), "--once"]) == 0
    assert "step 100 of 2,000" in capsys.readouterr().out


def test_it_knows_how_the_last_attempt_ended(tmp_path):
    journal = MetricsFile(tmp_path / "metrics.jsonl")
    for event in WHOLE[:5]:
        journal.update(event)
    lines = [{"attempt": "a", "began_at": 0}, {"attempt": "a", "exit_code": 79, "step": 0}, ["torn"], {"attempt": 1}]
    (tmp_path / "attempts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{")
    run = Watch(journal.path)
    assert not run.look()
    assert run.picture(NOW, 80, 40).state.name == "hung"


# ------------------------------------------------------------------------------------------------------ a real terminal


class Terminal:
    """A terminal of 90 by 40 with `nezha-ds watch` in it; what it was sent, in `text`."""

    def __init__(self, path: Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 90, 0, 0))
        command = [sys.executable, "-m", "nezha_ds.cli", "watch", str(path), "--every", "0.05"]
        env = {key: value for key, value in ranks.environment().items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self.master, 1 << 16)
            except OSError:  # how Linux tells that the other end is closed
                return
            self.text += re.sub(r"\x1b\[[0-9;]*m", "", piece.decode(errors="replace"))

    def wait_for(self, piece: str) -> None:
        """Until it is shown in what comes from now on."""
        begin = len(self.text)
        wait_for(lambda: piece in self.text[begin:], self.process)


def test_a_run_begins_goes_on_and_ends_in_a_real_terminal(tmp_path):
    folder = tmp_path / "run"
    screen = Terminal(folder)
    try:
        screen.wait_for("waiting")
        journal = MetricsFile(folder / "metrics.jsonl")
        journal.update(start(target_steps=40, run="first"))
        screen.wait_for("step 0 of 40")
        assert "first" in screen.text
        for step in (10, 20):
            journal.update(record(step))
        screen.wait_for("step 20 of 40")
        with journal.path.open("ab") as file:
            file.write(b'{"kind":"record","step":30')  # as a kill in the middle of a write leaves it
        screen.wait_for("step 20 of 40")
        journal.close()
        again = MetricsFile(journal.path)
        again.update(start(step=10, target_steps=40, run="first"))
        screen.wait_for("start 2")
        again.update(record(20))
        again.update(record(40, skipped_steps=3))
        again.update(save(40))
        screen.wait_for("done")
        journal.path.unlink()
        screen.wait_for("waiting for it")
        assert screen.process.poll() is None
        os.kill(screen.process.pid, signal.SIGINT)
        assert screen.process.wait(600) == 0
        wait_for(lambda: "\x1b[?1049l" in screen.text)  # the screen as it was before
        assert "Traceback" not in screen.text
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.master)
