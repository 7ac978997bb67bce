"""TensorBoard's events, read back by TensorBoard's own reader."""

import logging
import math
import resource
import struct
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nezha_ds.errors import ConfigError, LaunchError
from nezha_ds.observe.tensorboard import TensorBoardFile, scalars_of
from tests.observe.samples import evaluation, record, save, snapshot, start, stop, trouble


def read(folder):
    """Tag -> [(step, value)], as TensorBoard shows them."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def write(folder, *events):
    file = TensorBoardFile(folder)
    for event in events:
        file.update(event)
    file.close()
    return file


def single(number):
    """As its format holds it."""
    return struct.unpack("<f", struct.pack("<f", number))[0]


def test_what_tensorboard_shows_is_what_the_events_told(tmp_path):
    events = [start(), record(10), snapshot(10), save(10), evaluation(10), trouble(15), record(20, loss=6.0), stop(20)]
    write(tmp_path, *events)
    shown = read(tmp_path)
    assert shown["train/loss/total"] == [(10, 7.0), (20, 6.0)]
    assert shown["train/loss/mlm"] == [(10, 6.5), (20, 6.5)]
    assert shown["eval/loss/heldout/total"] == [(10, 6.0)]
    assert shown["lamb/trust_ratio/attention/median"] == [(10, single(0.02)), (20, single(0.02))]
    assert shown["train/tokens_per_second"] == [(10, 4000.0), (20, 4000.0)]
    told = {tag for event in (events[1], events[4]) for tag, _ in scalars_of(event)}
    assert {*shown} == told
    assert not any(tag.startswith(("rank/", "run/", "checkpoint/")) or "timestamp" in tag for tag in shown)


def test_numbers_that_are_none_are_shown_so(tmp_path):
    write(tmp_path, start(), record(10, loss=math.nan, grad_norm=math.inf, loss_scale=None))
    shown = read(tmp_path)
    assert math.isnan(shown["train/loss/total"][0][1])
    assert shown["train/grad_norm"] == [(10, math.inf)]
    assert "train/loss_scale" not in shown


def test_a_restart_takes_back_what_lies_beyond_its_step(tmp_path):
    write(tmp_path, start(), *(record(step, loss=1.0) for step in (10, 20, 30)), evaluation(30))
    write(tmp_path, start(step=10), *(record(step, loss=2.0) for step in (20, 30)))
    third = write(tmp_path, start(step=30), record(40, loss=3.0))
    assert third.path.name.endswith(".00003")
    shown = read(tmp_path)
    assert shown["train/loss/total"] == [(10, 1.0), (20, 2.0), (30, 2.0), (40, 3.0)]
    assert "eval/loss/heldout/total" not in shown or shown["eval/loss/heldout/total"] == []


def test_a_full_disk_costs_scalars_and_one_warning_but_not_the_run(tmp_path, caplog):
    """A write of which the disk takes a part only; then there is space again."""
    caplog.set_level(logging.WARNING)
    file = TensorBoardFile(tmp_path)
    file.update(start())
    file.update(record(10))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 100, before[1]))
        file.update(record(20))
        file.update(record(30))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.update(record(40))
    file.close()
    assert [step for step, _ in read(tmp_path)["train/loss/total"]] == [10, 40]
    assert file.lost == 2
    told = [entry.getMessage() for entry in caplog.records]
    assert len(told) == 2
    assert "training goes on" in told[0]
    assert "lacks 2 events" in told[1]


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="cannot write"):
        TensorBoardFile(tmp_path / "file" / "tensorboard")


def test_without_the_package_the_way_to_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(ConfigError, match=r"nezha-ds\[tensorboard\]"):
        TensorBoardFile(tmp_path)
