"""Inside a Slurm step on two nodes, started by srun itself, the bytes of one process; a killed rank ends the step."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import preparation
from tests.helpers.slurm import Slurm, slurm


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm(nodes=2, cpus=2) as cluster:
        yield cluster


SRUN = ("srun", "-N2", "-n3", "--mpi=pmix", "--kill-on-bad-exit=1")


def test_a_step_writes_the_bytes_of_one_process(cluster: Slurm, tmp_path: Path) -> None:
    text = preparation.statutes(tmp_path / "a.txt", 300)
    command = preparation.command(text, "--out", tmp_path / "step", "--executor", "mpi", launcher=SRUN)
    done = cluster.run(*command)
    assert done.returncode == 0, done.stderr + cluster.logs()
    assert preparation.run(text, "--out", tmp_path / "one", "--workers", 1)[0] == 0
    whole = preparation.contents(tmp_path / "one")
    assert preparation.contents(tmp_path / "step") == whole
    assert sum(name.startswith("train-") for name in whole) >= 4
