import io
import logging
import re
import sys

import pytest
from rich.console import Console as Terminal

from nezha_ds.observe.log import Console, clock, record_line, set_up_logging, short
from nezha_ds.world import World
from tests.observe.samples import evaluation, record, save, start


@pytest.fixture
def clean_logging():
    root, ours = logging.getLogger(), logging.getLogger("nezha_ds")
    handlers, level = list(root.handlers), ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)


def test_the_line_of_a_log_step():
    line = record_line(record(120, real_tokens=84_000), 2000, remaining=250)
    assert line == (
        "step 120/2000 · loss 7.000 (mlm 6.500, nsp 0.500) · acc mlm 3.2%, nsp 58.1% · lr 1.0e-03 · scale 65536 · "
        "8.4k tok/s · MFU 40% · data 5% · ETA 4:10"
    )


def test_the_line_leaves_out_what_is_not_there_and_says_what_went_wrong():
    line = record_line(record(120, losses={"mlm": 7.0}, loss_scale=None, skipped_steps=3), 2000)
    assert "scale" not in line and "ETA" not in line and "(mlm" not in line
    assert "skipped 3" in line


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(0, "0"), (950, "950"), (999.4, "999"), (999.6, "1.0k"), (8400, "8.4k"), (9960, "10k"), (999_400, "999k")],
        *[(999_900, "1.0M"), (1.2e7, "12M"), (3e9, "3.0G")],
    ],
)
def test_short(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (250, "4:10"), (3723, "1:02:03"), (2 * 86400 + 3 * 3600, "2d 03:00:00")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_rank_zero_talks_and_the_others_warn(clean_logging, capsys):
    ours = logging.getLogger("nezha_ds.somewhere")
    for world in (World(), World(rank=1, world_size=2, local_rank=1, local_world_size=2)):
        set_up_logging(world)
        ours.info("news from %d", world.rank)
        ours.warning("trouble on %d", world.rank)
        logging.getLogger("elsewhere").info("chatter")
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^\S+ \S+ ", "", line) for line in lines] == [
        "[0/1] INFO news from 0",
        "[0/1] WARNING trouble on 0",
        "[1/2] WARNING trouble on 1",
    ]


def test_without_a_terminal_every_event_is_a_line(clean_logging, capsys):
    set_up_logging(World())
    console = Console(World(), Terminal(file=io.StringIO()))
    for event in (start(), record(10), evaluation(10), save(10), save(20, ok=False)):
        console.update(event)
    console.close()
    lines = [line.split(" INFO ")[1] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "run demo: step 0 to 2000, base in fp16, ZeRO 1, 2 ranks"
    # 12 s for 10 steps, 1,990 to go.
    assert lines[1].startswith("step 10/2000") and lines[1].endswith("ETA 39:48")
    assert lines[2] == "step 10 · heldout loss 6.000 · acc 10.0% · 2.0 s"
    assert [lines[3], lines[4]] == ["step 10 · checkpoint saved · 0.7 s", "step 20 · checkpoint FAILED · 0.7 s"]


def test_the_time_left_follows_the_samples_where_a_batch_grows(clean_logging, capsys):
    set_up_logging(World())
    console = Console(World(), Terminal(file=io.StringIO()))
    for event in (start(), record(10, steps_left=50.5)):
        console.update(event)
    # 12 s for 10 steps, as much as 50.5 of them to go.
    assert capsys.readouterr().err.splitlines()[1].endswith("ETA 1:01")


def test_on_a_terminal_a_bar_moves_and_log_lines_pass_above_it(clean_logging, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    set_up_logging(World())
    console = Console(World(), Terminal(file=screen, force_terminal=True, width=160))
    for event in (start(run="[bold]"), record(1000), evaluation(1000), record(2000)):
        console.update(event)
    console.close()
    assert sys.stderr is screen
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "run [bold]: step 0" in text
    assert "━" in text
    assert "step 2000/2000 · loss 7.000" in text.splitlines()[-1]
    assert any(line.strip().endswith("heldout loss 6.000 · acc 10.0% · 2.0 s") for line in text.splitlines())


def test_a_terminal_that_hung_up_does_not_end_the_run(clean_logging, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(logging, "raiseExceptions", False)
    set_up_logging(World())
    logging.getLogger("nezha_ds").warning("nobody hears this")
