import json
import logging
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.errors import DataError, LaunchError
from nezha_ds.observe.events import Record, Start
from nezha_ds.observe.journal import MetricsFile, highest_step, history, read_metrics
from tests.observe.samples import evaluation, events, record, save, start, trouble

ROOT = Path(__file__).parents[2]


def write(path, some_events):
    file = MetricsFile(path)
    for event in some_events:
        file.update(event)
    file.close()


def strict_json(line):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


@settings(max_examples=50)
@given(st.lists(events, max_size=5))
def test_what_is_written_is_json_and_reads_back_as_it_was(tmp_path_factory, some_events):
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    write(path, some_events)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [strict_json(line)["kind"] for line in lines] == [event.kind for event in some_events]
    # repr, because a NaN does not equal itself.
    assert repr(read_metrics(path)) == repr(some_events)


def test_a_loss_that_exploded_is_not_a_loss_that_is_missing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [record(loss=math.nan, grad_norm=math.inf, loss_scale=None)])
    line = strict_json(path.read_text())
    assert (line["loss"], line["grad_norm"], line["loss_scale"]) == ("NaN", "Infinity", None)


def test_reopening_appends(tmp_path):
    path = tmp_path / "runs" / "one" / "metrics.jsonl"
    write(path, [record(1)])
    write(path, [record(2)])
    assert [event.step for event in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("torn", [b"{", b'{"kind":"record","st', b"\xff\x00", b"x" * (1 << 16)])
def test_a_torn_last_line_is_passed_over_and_then_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, [record(1)])
    with path.open("ab") as file:
        file.write(torn)
    assert [event.step for event in read_metrics(path)] == [1]
    write(path, [record(2)])
    assert [event.step for event in read_metrics(path)] == [1, 2]
    assert path.read_bytes().count(b"\n") == 2


def test_nothing_is_lost_to_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from nezha_ds.observe.journal import MetricsFile\n"
        "from tests.observe.samples import record\n"
        "file = MetricsFile(Path(sys.argv[1]))\n"
        "for step in range(50): file.update(record(step))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT).returncode == -signal.SIGKILL
    assert [event.step for event in read_metrics(path)] == list(range(50))


def test_a_full_disk_costs_lines_and_one_warning_but_not_the_run(tmp_path, caplog):
    """/dev/full says what a full disk says; then there is space again and whole lines follow."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.update(record(1))
    with caplog.at_level(logging.WARNING, logger="nezha_ds"):
        good, file._file = file._file, Full(path)
        file.update(record(2))
        file.update(record(3))
        file._file = good
        file.update(record(4))
        file.close()
    assert file.lost == 2
    assert [event.step for event in read_metrics(path)] == [1, 4]
    assert len(caplog.messages) == 2
    assert "No space left" in caplog.messages[0]
    assert "lacks 2 lines" in caplog.messages[1]


class Full:
    """A disk with room for 100 more bytes: it takes a part of the line, then nothing."""

    def __init__(self, path):
        self.file = path.open("ab", buffering=0)
        self.room = 100

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def truncate(self, size):
        self.room += 100
        return self.file.truncate(size)


def test_a_file_that_cannot_be_opened_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="choose another folder"):
        MetricsFile(tmp_path / "file" / "metrics.jsonl")
    with pytest.raises(LaunchError, match="Is a directory"):
        MetricsFile(tmp_path)


@pytest.mark.parametrize("line", ["{}", "[1]", '{"kind":"party"}', "not json", '{"kind":"save","step":1}'])
def test_a_line_of_another_kind_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write(path, [record(1)])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: .*version"):
        read_metrics(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_history_is_what_led_here():
    lost = [record(130), evaluation(130), save(130)]
    journal = [start(), record(110), record(120), save(120), *lost, start(step=120), record(130, loss=5.0)]
    kept = history(journal)
    assert [event.kind for event in kept] == ["start", "record", "record", "save", "start", "record"]
    assert [event.loss for event in kept if isinstance(event, Record)] == [7.0, 7.0, 5.0]


@given(st.lists(events, max_size=20))
def test_history_holds_no_step_twice_beyond_a_restart(some_events):
    kept = history(some_events)
    assert history(kept) == kept or any(event != event for event in kept)
    for place, event in enumerate(kept):
        if event.kind == "start":
            assert all(earlier.step <= event.step or earlier.kind == "start" for earlier in kept[:place])


def test_the_highest_step_is_the_highest_that_was_made(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert highest_step(path) == 0
    write(path, [])
    assert highest_step(path) == 0
    # The second attempt came less far than the first; the step of a trouble was not made.
    write(path, [start(), record(40), save(35), trouble(41), start(step=35), record(38), evaluation(38)])
    assert highest_step(path) == 40


@settings(max_examples=50)
@given(st.lists(events, max_size=5))
def test_the_highest_step_is_that_of_the_events(tmp_path_factory, some_events):
    """Whatever text is in them, such as the name of a run that looks like a step."""
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    write(path, [*some_events, start(run='","step":999999,"kind":"record"')])
    made = [event.step for event in some_events if event.kind != "trouble"]
    assert highest_step(path) == max(made, default=0)


def test_a_journal_from_before_ranks_were_told_of_still_reads(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [start(), record()])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    added = {"attempt", "replayed", "rank_busy_seconds", "rank_memory", "stalled_steps", "prefetched_batches"}
    assert added <= {name for line in lines for name in line}
    path.write_text("".join(f"{json.dumps({k: v for k, v in line.items() if k not in added})}\n" for line in lines))
    began, told = read_metrics(path)
    assert isinstance(began, Start) and (began.attempt, began.replayed) == (1, 0)
    assert isinstance(told, Record) and told.relative_performance == told.rank_memory == ()
