"""The metrics as a file: whole at every moment, gone at the end, and never in the training's way."""

import os
import re
import stat
import subprocess
import sys
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from nezha_ds.observe import kept
from nezha_ds.observe.exporter import ExporterSettings, open_exporter
from nezha_ds.observe.kept import KeptFile
from nezha_ds.observe.metrics import TABLE
from nezha_ds.observe.pulse import Pulse
from nezha_ds.world import World
from tests.helpers.processes import wait_for
from tests.observe.exporters import exporting
from tests.observe.samples import record


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """No test waits for the clock."""
    monkeypatch.setattr(kept, "SECONDS", 0.02)
    monkeypatch.setattr(kept, "LEAST_SECONDS", 0.01)


def test_it_shows_what_a_scrape_would_and_goes_with_the_run(tmp_path):
    folder = tmp_path / "collector"
    folder.mkdir()
    path = folder / "nezha_demo-node0.prom"
    previous = os.umask(0o077)
    try:
        with exporting(tmp_path, textfile=folder, enabled=False) as exporter:
            assert exporter.url == ""  # files only: no port is opened
            exporter.update(record(1234))
            wait_for(lambda: path.exists() and "nezha_train_global_step" in path.read_text())
            wait_for(lambda: re.search(r"^nezha_train_global_step\{.*\} 1234\.0$", path.read_text(), re.MULTILINE))
            text = path.read_text()
            assert stat.S_IMODE(path.stat().st_mode) == 0o644  # node_exporter is another user
            # A temporary file may be under way; the collector reads *.prom.
            assert [one.name for one in folder.iterdir() if one.suffix == ".prom"] == [path.name]
    finally:
        os.umask(previous)
    families = list(parse(text))
    assert {family.name for family in families} == {metric.name.removesuffix("_total") for metric in TABLE}
    assert all(sample.timestamp is None for family in families for sample in family.samples)
    assert list(folder.iterdir()) == []


def test_it_is_alive_between_log_steps(tmp_path):
    """What the ranks are at changes without an event, and the file's time tells how old it is."""
    with exporting(tmp_path, textfile=tmp_path, enabled=False):
        path = tmp_path / "nezha_demo-node0.prom"
        wait_for(path.exists)
        first = path.stat().st_mtime_ns
        wait_for(lambda: path.stat().st_mtime_ns > first)


def test_a_log_step_need_not_wait_for_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SECONDS", 3600.0)
    with exporting(tmp_path, textfile=tmp_path, enabled=False) as exporter:
        path = tmp_path / "nezha_demo-node0.prom"
        wait_for(path.exists)
        exporter.update(record(1234))
        wait_for(lambda: " 1234.0\n" in path.read_text())


def test_a_reader_never_sees_half_of_it(tmp_path):
    texts = (b"a" * 500_000, b"b" * 500_000)
    turns = iter(range(10**9))
    one = KeptFile(tmp_path / "x.prom", lambda: texts[next(turns) % 2])
    wait_for(one.path.exists)
    seen = {one.path.read_bytes() for _ in range(300)}
    wait_for(lambda: seen.add(one.path.read_bytes()) or len(seen) == 2)
    one.close()
    assert seen == set(texts)


def test_a_disk_that_cannot_be_written_is_told_once_and_so_is_its_end(tmp_path, caplog):
    folder, tried = tmp_path / "collector", []
    one = KeptFile(folder / "x.prom", lambda: tried.append(0) or b"1\n")
    wait_for(lambda: len(tried) > 5)
    assert caplog.text.count("the run goes on without this file") == 1
    assert f"cannot write {one.path} (No such file or directory)" in caplog.text
    folder.mkdir()
    wait_for(lambda: "is written again" in caplog.text)
    assert one.path.read_bytes() == b"1\n"
    one.close()
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(tmp_path, caplog):
    """A limit on the size of files stands for the disk, in a process of its own."""
    code = (
        "import pathlib, resource, signal, sys, time\n"
        "from nezha_ds.observe.kept import KeptFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "tried = []\n"
        "one = KeptFile(pathlib.Path(sys.argv[1]) / 'x.prom', lambda: tried.append(0) or bytes(5000))\n"
        "while not tried: time.sleep(0.01)\n"
        "one.close()\n"
        "print('the run goes on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "the run goes on\n" and done.stderr.count("cannot write") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_hangs_holds_up_neither_a_step_nor_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "CLOSE_SECONDS", 0.01)
    writing, released = threading.Event(), threading.Event()

    def hang():
        writing.set()
        released.wait()
        return b""

    one = KeptFile(tmp_path / "x.prom", hang)
    assert writing.wait(600)
    for _ in range(1000):
        one.hasten()
    one.close()
    assert one._thread.is_alive()
    released.set()
    one._thread.join()
    assert list(tmp_path.iterdir()) == []


def test_who_keeps_a_file(tmp_path):
    first, other = (
        World(local_world_size=2, world_size=2),
        World(rank=1, world_size=2, local_rank=1, local_world_size=2),
    )
    pulse = Pulse.open(tmp_path, first)
    for world, enabled, wanted in ((other, True, False), (other, False, False), (first, False, True)):
        exporter = open_exporter(ExporterSettings(enabled=enabled, port=0, textfile=tmp_path), world, "demo", pulse)
        assert bool(exporter) == wanted
        if exporter:
            exporter.close()
    pulse.close()
