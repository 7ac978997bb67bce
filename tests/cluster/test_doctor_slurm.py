"""`srun nezha-ds doctor --cluster` on two nodes of a real Slurm, whose nodes it names; the ranks meet by themselves."""

import sys
from pathlib import Path

from tests.helpers.ranks import free_port
from tests.helpers.slurm import Slurm

DOCTOR = (sys.executable, "-m", "nezha_ds.cli", "doctor", "--cluster", "--size", "2", "--slow", "0.1", "--limit", "600")


def test_whole_nodes_are_fit_and_one_whose_task_does_not_come_is_named(jobs: Slurm, tmp_path: Path) -> None:
    step = ("env", f"MASTER_PORT={free_port()}", "OMP_NUM_THREADS=1", "srun", "-N2", "-n2")
    whole = jobs.run(*step, *DOCTOR, "--wait", "600", "--folder", tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr + jobs.logs()
    rows = [line.split()[:2] for line in whole.stdout.splitlines() if line.startswith(" n")]
    assert rows == [["node", "ranks"], ["n1", "0"], ["n2", "1"]]
    assert whole.stdout.splitlines()[-1] == "all 2 nodes with 2 ranks are fit for a run"
    # The second task ends before it comes.
    some = ("sh", "-c", '[ "$SLURM_PROCID" = 1 ] || exec "$@"', "sh", *DOCTOR)
    lost = jobs.run(*step, *some, "--wait", "1", "--folder", tmp_path)
    assert lost.returncode == 2, lost.stdout + lost.stderr
    assert lost.stdout.splitlines()[-1] == "rank 1 of 2 did not come, of n2"
