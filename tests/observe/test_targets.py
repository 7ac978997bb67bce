"""The file by which Prometheus finds a node: there while the node can be asked, whatever its last attempt left."""

import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from nezha_ds.errors import LaunchError
from nezha_ds.observe import kept, targets
from nezha_ds.observe.exporter import ExporterSettings, check_exporter
from nezha_ds.observe.targets import announced, target
from nezha_ds.world import World
from tests.helpers.processes import wait_for
from tests.helpers.ranks import REPOSITORY
from tests.helpers.tls import authority
from tests.observe.exporters import address, exporting


def node(number, nodes=2):
    """The first rank of a node of four."""
    return World(rank=4 * number, world_size=4 * nodes, local_rank=0, local_world_size=4, node=number)


def files(folder):
    """Without temporary ones."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".tmp")


def content(path):
    """What is in a file, once it says where somebody is."""
    return wait_for(lambda: path.exists() and path.read_text().replace("[]", ""))


def test_it_is_there_while_the_exporter_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    folder = tmp_path / "targets"
    folder.mkdir()
    previous = os.umask(0o077)
    try:
        with exporting(tmp_path, "law-base", node(1), targets=folder) as exporter:
            path = folder / "law-base-node1.json"
            (group,) = json.loads(content(path))
            assert stat.S_IMODE(path.stat().st_mode) == 0o644  # Prometheus is another user
            assert files(folder) == [path.name]
    finally:
        os.umask(previous)
    assert group == {
        "targets": [f"127.0.0.1:{address(exporter)[1]}"],
        "labels": {"run": "law-base", "job_id": "4711", "node": "1"},
    }
    assert files(folder) == []


def test_with_tls_it_says_so(tmp_path):
    pair = authority(tmp_path)
    folder = tmp_path / "targets"
    folder.mkdir()
    with exporting(tmp_path, targets=folder, certificate=pair.certificate, key=pair.key):
        (group,) = json.loads(content(folder / "demo-node0.json"))
    assert group["labels"]["__scheme__"] == "https"


def test_what_a_killed_attempt_left_is_replaced_and_what_is_beyond_the_run_removed(tmp_path):
    """kill -9 of three nodes; two come again. Rank 0's node removes the third's file, and nobody else's."""
    folder = tmp_path / "targets"
    folder.mkdir()
    left = [f"demo-node{number}.json" for number in (0, 1, 2, 10)]
    others = ["demo-node2.json.bak", "demo-node2x.json", "demo2-node2.json", "other-node2.json", "xdemo-node2.json"]
    for name in (*left, *others):
        (folder / name).write_text("[]")
    with exporting(tmp_path / "second", "demo", node(1), targets=folder):
        assert content(folder / "demo-node1.json")
        assert (folder / "demo-node2.json").exists()
        with exporting(tmp_path / "first", "demo", node(0), targets=folder):
            assert content(folder / "demo-node0.json")
            assert files(folder) == sorted(["demo-node0.json", "demo-node1.json", *others])
    assert files(folder) == sorted(others)


KILLED = """
import pathlib, sys, time
from tests.observe.exporters import exporting
with exporting(pathlib.Path(sys.argv[1]), targets=pathlib.Path(sys.argv[2]), textfile=pathlib.Path(sys.argv[2])):
    time.sleep(600)
"""


def test_kill_9_leaves_what_the_next_attempt_replaces_and_removes(tmp_path):
    folder = tmp_path / "targets"
    folder.mkdir()
    killed = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, folder], cwd=REPOSITORY)
    left = wait_for(lambda: len(files(folder)) == 2 and content(folder / "demo-node0.json"), killed)
    killed.kill()
    killed.wait()
    assert files(folder) == ["demo-node0.json", "nezha_demo-node0.prom"]
    with exporting(tmp_path, targets=folder, textfile=folder):
        wait_for(lambda: content(folder / "demo-node0.json") != left)
    assert files(folder) == []


def test_a_run_s_name_is_no_pattern(tmp_path):
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "axb-node5.json").write_text("[]")
    with exporting(tmp_path, "a.b", targets=folder):
        content(folder / "a.b-node0.json")
        assert files(folder) == ["a.b-node0.json", "axb-node5.json"]


def test_a_second_start_that_is_refused_takes_the_file_from_the_first_for_a_moment_only(tmp_path, monkeypatch):
    """It opens its exporter before it learns that the folder has a run in it."""
    monkeypatch.setattr(kept, "SECONDS", 0.02)
    monkeypatch.setattr(kept, "LEAST_SECONDS", 0.01)
    folder = tmp_path / "targets"
    folder.mkdir()
    with exporting(tmp_path / "first", targets=folder) as first:
        own = content(folder / "demo-node0.json")
        with exporting(tmp_path / "second", targets=folder):
            wait_for(lambda: content(folder / "demo-node0.json") != own)
        wait_for(lambda: content(folder / "demo-node0.json") == own)
        assert str(address(first)[1]) in own


def test_an_attempt_that_ends_late_takes_nothing_of_the_next_one_s(tmp_path):
    folder = tmp_path / "targets"
    folder.mkdir()
    with exporting(tmp_path, targets=folder):
        assert content(folder / "demo-node0.json")
        next_one = target("elsewhere", 1, {"run": "demo"}, tls=False)
        (folder / "demo-node0.json").write_text(next_one)
    assert (folder / "demo-node0.json").read_text() == next_one


def test_a_folder_that_vanished_ends_no_run(tmp_path, caplog):
    with exporting(tmp_path, targets=tmp_path / "gone"):
        wait_for(lambda: "the run goes on without this file" in caplog.text)
    assert "cannot be cleared of nodes that are gone (No such file or directory)" in caplog.text


def test_a_folder_that_cannot_be_made_is_told_before_ranks_meet(tmp_path):
    (tmp_path / "file").touch()
    for name in ("targets", "textfile"):
        with pytest.raises(LaunchError, match=str(tmp_path / "file")):
            check_exporter(ExporterSettings(**{name: tmp_path / "file" / "below"}))
        check_exporter(ExporterSettings(**{name: tmp_path / name}))
        assert (tmp_path / name).is_dir()


# -------------------------------------------------------------------------------------------------- which address it is


def test_what_is_bound_to_is_announced_unless_it_is_any_address():
    assert announced("127.0.0.1") == "127.0.0.1"
    assert announced("10.1.2.3") == "10.1.2.3"
    assert announced("::1") == "::1"
    assert target("::1", 5, {}, tls=False).count('"[::1]:5"') == 1


@pytest.mark.parametrize("anywhere", ["0.0.0.0", "::"])
def test_any_address_is_announced_as_this_host_s(anywhere, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu07")
    found = {"gpu07": ["127.0.1.1", "10.0.0.7"]}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *_: [(0, 0, 0, "", (one, 0)) for one in found[name]] or socket.gaierror
    )
    assert announced(anywhere) == "10.0.0.7"
    assert announced(anywhere, "{host}.cluster.example") == "gpu07.cluster.example"
    assert announced(anywhere, "192.168.0.1") == "192.168.0.1"
    # As on Debian, whose name leads to the loopback: the card that leads outside, or else the name.
    found["gpu07"] = ["127.0.1.1"]
    monkeypatch.setattr(targets, "_outside", lambda: "10.9.9.9")
    assert announced(anywhere) == "10.9.9.9"
    monkeypatch.setattr(targets, "_outside", lambda: "")
    assert announced(anywhere) == "gpu07"


def test_a_name_that_leads_nowhere_is_no_error(monkeypatch):
    def nowhere(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    assert announced("0.0.0.0")


def test_finding_the_card_sends_nothing_and_is_not_the_loopback_s(monkeypatch):
    monkeypatch.setattr(targets, "ELSEWHERE", ("127.0.0.1", 9))
    assert targets._outside() == "127.0.0.1"
    monkeypatch.setattr(targets, "ELSEWHERE", ("255.255.255.255", 9))  # refused without leave to broadcast
    assert targets._outside() == ""
