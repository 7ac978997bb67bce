"""The launcher's own part: what ranks are told, how their ends become one code, and that it waits for all of them."""

import os
import signal
import subprocess
import sys
from itertools import permutations

import pytest

from nezha_ds.errors import ConfigError, Exit, LaunchError
from nezha_ds.train.launcher import Ended, exit_code, rendezvous, worlds_of
from nezha_ds.world import LAUNCHER, World, find_world, rank_environment
from tests.helpers import ranks
from tests.helpers.processes import wait_for

KILLED, TERMINATED = -signal.SIGKILL, -signal.SIGTERM


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ([Ended(0), Ended(0)], 0),
        ([Ended(0), Ended(75)], 75),
        ([Ended(76), Ended(1), Ended(2), Ended(KILLED)], 76),
        ([Ended(79), Ended(1), Ended(KILLED, ours=True)], 79),
        ([Ended(77), Ended(77)], 77),
        # Out of memory: the other could not meet it, and says so.
        ([Ended(KILLED), Ended(2)], 137),
        ([Ended(2), Ended(1), Ended(TERMINATED, ours=True)], 2),
        # The launcher's own SIGTERM, while Python started: stopped; its SIGKILL: not even that.
        ([Ended(75), Ended(TERMINATED, ours=True)], 75),
        ([Ended(75), Ended(KILLED, ours=True)], 137),
        ([Ended(-signal.SIGSEGV), Ended(75)], 139),
    ],
)
def test_the_code_is_that_of_the_rank_that_tells_most(ended, code):
    assert {exit_code(order) for order in permutations(ended)} == {code}


def test_of_other_errors_the_first_counts():
    assert exit_code([Ended(1), Ended(3), Ended(75)]) == 1
    assert exit_code([Ended(3), Ended(1), Ended(0)]) == 3


def test_ranks_of_many_nodes_know_their_place():
    worlds = [world for node in range(4) for world in worlds_of(8, 4, node)]
    assert [world.rank for world in worlds] == list(range(32))
    for world in worlds:
        assert find_world(rank_environment(world, "node0", 29500)) == world


@pytest.mark.parametrize(("ranks", "nodes", "node_rank"), [(0, 1, 0), (1, 0, 0), (1, 2, 2), (1, 1, -1)])
def test_impossible_numbers_are_refused(ranks, nodes, node_rank):
    with pytest.raises(ConfigError, match="is impossible"):
        worlds_of(ranks, nodes, node_rank)


def test_where_ranks_meet(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    one, many = World(0, 2, 0, 2), World(0, 4, 0, 2)
    assert rendezvous("node0:1234", many) == ("node0", 1234)
    assert rendezvous("node0", many) == ("node0", 29500)
    host, port = rendezvous(None, one)
    assert host == "127.0.0.1"
    assert port > 1023
    with pytest.raises(LaunchError, match="several nodes need --master"):
        rendezvous(None, many)
    with pytest.raises(LaunchError, match="is not a port"):
        rendezvous("node0:x", many)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "4321")
    assert rendezvous(None, many) == ("node1", 4321)
    assert rendezvous("node0", many) == ("node0", 4321)


SCRIPT = """
import os, signal, sys, time
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: got.append(number))
print("rank", os.environ["RANK"], "up", flush=True)
{body}
"""


def start(tmp_path, body: str, *options: str) -> "subprocess.Popen[str]":
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body=body))
    command = [sys.executable, "-m", "nezha_ds.cli", "launch", "--ranks", "2", *options, "--script", str(script)]
    return subprocess.Popen(
        command, env=ranks.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until_up(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    up = 0
    while up < 2:
        line = process.stdout.readline()
        assert line, "it ended"
        up += line.endswith(" up\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_each_signal_reaches_each_rank(tmp_path, number):
    body = "while not got: time.sleep(0.01)\nprint('got', *got, flush=True)\nsys.exit(75)"
    process = start(tmp_path, body)
    wait_until_up(process)
    process.send_signal(number)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == Exit.STOPPED
    assert said.count(f"got {number:d}\n") + said.count(f"got {number:d} {signal.SIGTERM:d}\n") == 2


def test_ranks_that_do_not_end_are_killed_after_the_grace(tmp_path):
    body = "if os.environ['RANK'] == '1': sys.exit(3)\nwhile True: time.sleep(0.01)"
    process = start(tmp_path, body, "--grace", "0.1")
    said = process.communicate(timeout=600)[0]
    assert "rank 1 ended with 3; telling the others to stop" in said
    assert "1 ranks did not end within 0.1 s; killing them" in said
    assert process.returncode == 3


def test_a_second_ctrl_c_kills(tmp_path):
    process = start(tmp_path, "while True:\n    time.sleep(0.01)\n    got and print('got', flush=True)")
    wait_until_up(process)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    wait_for(lambda: process.stdout.readline() == "got\n", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGKILL


def test_ranks_find_their_launcher_in_the_environment(tmp_path):
    process = start(tmp_path, f"print(os.environ[{LAUNCHER!r}] == str(os.getppid()), os.getpgrp() == os.getpid())")
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0
    assert said.count("True True\n") == 2
    assert LAUNCHER not in os.environ
