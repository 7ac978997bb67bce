"""launch/slurm/ with real ranks on a real Slurm of two nodes: whatever is done to a run, it ends with the same bytes.

Ranks are held before a step until the test lets them go, so that each blow meets a run under way.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.observe.events import Start
from nezha_ds.world import World, threads_per_rank
from tests.helpers import preparation, ranks, runs
from tests.helpers.jobs import Job, submit
from tests.helpers.processes import parent_of, wait_for
from tests.helpers.runs import Run
from tests.helpers.slurm import Slurm

pytestmark = pytest.mark.ranks

GATED = ranks.REPOSITORY / runs.GATED
PREPARE = ranks.REPOSITORY / "launch" / "slurm" / "prepare.sbatch"


def start(cluster: Slurm, run: Run, *options: object, **variables: object) -> Job:
    """The run on two nodes, one rank on each, of as many threads as `undisturbed` has: sums depend on their number."""
    variables = {"OMP_NUM_THREADS": threads_per_rank(World(world_size=2, local_world_size=2)), **variables}
    return submit(cluster, run.recipe.parent, "--nodes=2", *options, "--", *run.arguments, env=variables)


def gate_of(run: Run) -> Path:
    """What `open_gate` makes."""
    return run.recipe.with_name("gate")


class Attempts:
    """One job and its attempts, each of which is struck once its ranks are under way."""

    def __init__(self, job: Job, run: Run) -> None:
        self.job, self.run = job, run
        self.number = 0

    def under_way(self) -> None:
        """Until the next attempt has begun to train."""
        self.number += 1
        wait_for(lambda: sum(isinstance(event, Start) for event in self.run.events()) == self.number)

    def is_told(self, blow: Callable[[], object]) -> None:
        """A blow of which ranks hear: it is noted by one, they end their step together, and Slurm has the job again."""
        heard = self._heard()
        blow()
        wait_for(lambda: self._heard() != heard)
        self.ends()

    def ends(self) -> None:
        """Let the ranks go until this attempt is over."""
        self.run.open_gate()
        self.job.reaches("PENDING", restarts=self.number)
        gate_of(self.run).unlink()

    def _heard(self) -> Counter[int]:
        return Counter({rank: self.job.rank_log(rank).count(runs.STOPPING) for rank in range(2)})


def test_two_nodes_finish_with_the_bytes_of_one_machine(
    jobs: Slurm, undisturbed: Run, embedded: Path, tmp_path: Path
) -> None:
    run = runs.make(tmp_path, embedded, **runs.BF16)
    job = start(jobs, run)
    facts = job.reaches("COMPLETED")
    assert facts["NodeList"] == "n[1-2]"
    assert run.tensors(12) == undisturbed.tensors(12)
    assert "pretrain.sbatch: done" in job.log()
    assert "step 12/12" in job.log()


def test_a_run_survives_whatever_slurm_does_to_it(
    jobs: Slurm, undisturbed: Run, embedded: Path, tmp_path: Path
) -> None:
    """Requeued by hand, preempted, at its time limit, with a node lost: five attempts, and the undisturbed bytes."""
    run = runs.make(tmp_path, embedded, **runs.BF16)
    job = start(jobs, run, SCRIPT=GATED, LAST_STEP=0, GATE=gate_of(run))
    attempts = Attempts(job, run)

    attempts.under_way()
    attempts.is_told(lambda: jobs.run("scontrol", "requeue", job.id))
    job.goes_on(1)

    attempts.under_way()
    attempts.is_told(
        lambda: jobs.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    )
    job.goes_on(2)

    attempts.under_way()
    attempts.is_told(lambda: job.update("TimeLimit=1"))  # minutes, of which the last five are for saving
    job.goes_on(3, "TimeLimit=UNLIMITED")

    attempts.under_way()
    lose_node(jobs, "n2", rank=1)
    attempts.ends()
    jobs.start("n2", "slurmd", "-D", "-N", "n2")
    job.goes_on(4)

    attempts.under_way()
    run.open_gate()
    job.reaches("COMPLETED", restarts=4)
    assert run.tensors(12) == undisturbed.tensors(12)
    assert job.log().count("exit code 75") >= 3


def lose_node(cluster: Slurm, node: str, rank: int) -> None:
    """kill -9 of its slurmd, of its step and of the rank; Slurm is told, or it would wait for SlurmdTimeout."""
    lost = cluster.ranks(rank)
    cluster.daemons[node].kill()
    for pid in {*lost, *map(parent_of, lost)}:
        os.kill(pid, signal.SIGKILL)
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")


def test_a_fault_in_the_recipe_is_told_once_and_not_tried_again(jobs: Slurm, tmp_path: Path) -> None:
    run = runs.make(tmp_path, tmp_path / "shards", "train.stepz=1")
    job = start(jobs, run)
    assert job.reaches("FAILED")["ExitCode"] == "2:0"
    assert job.log().count("nezha-ds: ") == 1
    assert "train.stepz" in job.log()


def test_prepare_on_two_nodes_writes_the_bytes_of_one_process(jobs: Slurm, tmp_path: Path) -> None:
    text = preparation.statutes(tmp_path / "a.txt", documents=100)
    alone, together = (tmp_path / name for name in ("alone", "together"))
    prepare(PrepareSettings(inputs=(str(text),), out=alone), progress=False)
    # Two nodes on one host would meet in MPI's shared memory.
    tcp = {"OMPI_MCA_btl": "self,tcp"}
    submit(jobs, tmp_path, "--nodes=2", "--", text, "--out", together, script=PREPARE, env=tcp).reaches("COMPLETED")
    assert preparation.contents(together) == preparation.contents(alone)
