"""Whatever starts a rank: when that is killed, the kernel tells the rank to stop. Ranks without torch."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nezha_ds.world import LAUNCHER
from tests.helpers import ranks
from tests.helpers.processes import parent_of, wait_for

RANK = """
import os, sys, time
from pathlib import Path
from nezha_ds.train.orphan import stop_with_launcher
from nezha_ds.train.preempt import StopFlag
folder = Path(sys.argv[1])
flag = StopFlag()
stop_with_launcher()
(folder / f"up-{os.getpid()}").touch()
while not flag.signal and not (folder / "gate").exists():
    time.sleep(0.01)
(folder / f"ended-{os.getpid()}").write_text(str(int(flag.signal)))
"""


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[list[str]]:
    """What starts a rank that notes the signal by which it ended; none is left behind."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    yield [sys.executable, str(script), str(tmp_path)]
    (tmp_path / "gate").touch()


def up(folder: Path, count: int, process: "subprocess.Popen[str]") -> list[int]:
    """The ranks' process ids, once they are all there."""
    wait_for(lambda: len([*folder.glob("up-*")]) == count, process)
    return [int(path.name.removeprefix("up-")) for path in folder.glob("up-*")]


def ended(folder: Path, pid: int) -> int:
    """By which signal a rank ended."""
    path = folder / f"ended-{pid}"
    return int(wait_for(lambda: path.exists() and path.read_text()))


def start(*command: str, **variables: str) -> "subprocess.Popen[str]":
    env = ranks.environment() | {"PYTHONPATH": str(ranks.REPOSITORY)} | variables
    return subprocess.Popen(command, env=env, text=True, start_new_session=True)


def shell(rank: list[str]) -> str:
    return f"{shlex.join(rank)} & {shlex.join(rank)} & wait"


@pytest.mark.parametrize("launcher", ["sh", "mpirun"])
def test_when_its_launcher_is_killed_it_is_told(tmp_path, rank, launcher):
    command = {
        "sh": ["sh", "-c", f"export RANK=0 WORLD_SIZE=1; {shell(rank)}"],
        "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", *rank],
    }
    process = start(*command[launcher])
    pids = up(tmp_path, 2, process)
    assert {parent_of(pid) for pid in pids} == {process.pid}
    process.kill()
    process.wait()
    assert [ended(tmp_path, pid) for pid in pids] == [signal.SIGTERM] * 2


def test_without_a_launcher_it_outlives_its_shell(tmp_path, rank):
    """As `nohup` and `&` mean it."""
    process = start("sh", "-c", shell(rank))
    pids = up(tmp_path, 2, process)
    process.kill()
    process.wait()
    wait_for(lambda: {parent_of(pid) for pid in pids} - {process.pid} and process.pid not in map(parent_of, pids))
    assert not [*tmp_path.glob("ended-*")]
    (tmp_path / "gate").touch()
    assert [ended(tmp_path, pid) for pid in pids] == [0, 0]


def test_a_launcher_that_died_before_the_rank_asked_is_missed(tmp_path, rank):
    """Ours says who it is; this one is not the parent any more."""
    process = start(*rank, RANK="0", WORLD_SIZE="1", **{LAUNCHER: "1"})
    (pid,) = up(tmp_path, 1, process)
    assert ended(tmp_path, pid) == signal.SIGTERM
    assert process.wait(600) == 0
