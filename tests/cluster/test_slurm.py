"""Inside a Slurm step on two nodes, started by srun itself, the bytes of one process; a killed rank ends the step."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import preparation, processes
from tests.helpers.slurm import Slurm, slurm

pytestmark = pytest.mark.timing

SRUN = ("srun", "-N2", "-n3", "--mpi=pmix", "--kill-on-bad-exit=1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm(nodes=2, cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preparation.statutes(tmp_path_factory.mktemp("text") / "a.txt")


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert preparation.run(text, "--out", out, "--workers", 1)[0] == 0
    return preparation.contents(out)


def test_a_step_writes_the_bytes_of_one_process(
    cluster: Slurm, text: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    command = preparation.command(text, "--out", tmp_path / "out", "--executor", "mpi", launcher=SRUN)
    done = cluster.run(*command)
    assert done.returncode == 0, done.stderr + cluster.logs()
    assert preparation.contents(tmp_path / "out") == whole
    assert sum(name.startswith("train-") for name in whole) >= 9


def test_a_killed_rank_on_another_node_ends_the_step(
    cluster: Slurm, text: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = preparation.command(text, "--out", out, "--executor", "mpi", launcher=SRUN)
    step = cluster.popen("env", "OPEN_TASKS=5", *command)
    processes.wait_for(lambda: len([*out.glob("receipts/*.json")]) >= 2, step)
    (rank,) = cluster.ranks(2)
    os.kill(rank, signal.SIGKILL)
    _, told = step.communicate(timeout=600)
    assert step.returncode
    assert "n2: task 2: Killed" in told
    assert not (out / "manifest.json").exists()
    before = preparation.finished(out)
    assert cluster.run(*command).returncode == 0
    assert preparation.contents(out) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before
