"""What launch/slurm/*.sbatch does around ranks, with ranks that train nothing: places, ports, logs, ends, arrays."""

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ranks
from tests.helpers.jobs import PRETRAIN, Job, submit
from tests.helpers.processes import wait_for
from tests.helpers.slurm import Slurm

RANK = ranks.REPOSITORY / "tests" / "cluster" / "scripts" / "rank.py"
SCRIPTS = sorted(PRETRAIN.parent.glob("*.sbatch"))


def start(cluster: Slurm, folder: Path, *words: object, options: tuple[object, ...] = (), **variables: object) -> Job:
    """A job whose ranks end as the words say, one word for each attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    return submit(cluster, folder, *options, "--", folder, *words, env={"SCRIPT": RANK, **variables})


def note(folder: Path, rank: int = 0, attempt: int = 0) -> dict[str, Any]:
    """What a rank has told."""
    path = folder / f"rank-{rank}-attempt-{attempt}.json"
    wait_for(path.exists)
    return json.loads(path.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_accepts_the_script(jobs: Slurm, script: Path) -> None:
    done = jobs.run("sbatch", "--test-only", "--nodes=2", script, "--recipe", "a.toml")
    assert done.returncode == 0, done.stderr
    assert "on nodes n[1-2] in partition low" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_script_explains_itself_and_runs_nowhere_else(script: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True, env=env).stdout
    assert "sbatch --nodes 4" in shown and "PYTHON" in shown
    assert "#SBATCH" not in shown and "set -e" not in shown
    outside = subprocess.run(["bash", script], capture_output=True, text=True, check=False, env=env)
    assert outside.returncode == 2
    assert "no Slurm job; submit it: sbatch" in outside.stderr


def test_every_rank_finds_its_place_its_share_and_the_others(jobs: Slurm, tmp_path: Path) -> None:
    """Two ranks on each of two nodes of two cores; somebody listens on the job's port."""
    job = start(jobs, tmp_path, options=("--nodes=2", "--hold"), RANKS_PER_NODE=2, TORCH_EXTENSIONS_DIR="")
    port = 10_000 + int(job.id) % 19_000
    with socket.create_server(("", port)):
        jobs.run("scontrol", "release", job.id)
        job.reaches("COMPLETED")
    notes = [note(tmp_path, rank) for rank in range(4)]
    places = [(each["rank"], each["world_size"], each["local_rank"], each["node"]) for each in notes]
    assert places == [(0, 4, 0, 0), (1, 4, 1, 0), (2, 4, 0, 1), (3, 4, 1, 1)]
    assert {each["local_world_size"] for each in notes} == {2}
    assert {each["environment"]["OMP_NUM_THREADS"] for each in notes} == {"1"}
    assert {each["environment"]["MASTER_PORT"] for each in notes} == {str(port + 1)}
    # A folder of compiled parts that nobody else can write into, there before the ranks and gone with the job.
    folders = {each["environment"]["TORCH_EXTENSIONS_DIR"] for each in notes}
    assert folders == {f"/tmp/nezha_ds-extensions-{job.id}"}
    assert {each["extensions"] for each in notes} == {0o700}
    assert not Path(*folders).exists()
    # Each rank's log, and rank 0's in the job's own.
    assert [job.rank_log(rank) for rank in range(4)] == [f"rank {rank} in attempt 0\n" for rank in range(4)]
    assert "rank 0 in attempt 0\n" in job.log() and "rank 1" not in job.log()


def test_only_ends_that_a_restart_can_mend_go_back_into_the_queue(jobs: Slurm, tmp_path: Path) -> None:
    started = {word: start(jobs, tmp_path / word, word) for word in ("0", "2", "76", "77", "75", "79", "1", "killed")}
    started["bounded"] = start(jobs, tmp_path / "bounded", "75", "75", MAX_REQUEUES=1)
    started["bounded"].goes_on(restarts=1)
    ends = {"0": "COMPLETED", "2": "FAILED", "76": "FAILED", "77": "FAILED", "bounded": "FAILED"}
    codes = {"0": "0:0", "2": "2:0", "76": "76:0", "77": "77:0", "bounded": "75:0"}
    for word, job in started.items():
        facts = job.reaches(ends.get(word, "PENDING"), restarts=0 if word in codes and word != "bounded" else 1)
        assert facts["ExitCode"] == codes.get(word, facts["ExitCode"])
        said = job.log().rpartition("pretrain.sbatch: ")[2]
        assert ("back in the queue" in said) == (word not in codes), said
    assert "exit code 137: back" in started["killed"].log()
    assert "exit code 2: the command, recipe, data or a node must be mended" in started["2"].log()
    assert "after 1 restarts, of which MAX_REQUEUES allows no more" in started["bounded"].log()
    for job in started.values():
        jobs.run("scancel", job.id)


def test_scancel_lets_ranks_save_and_is_the_end(jobs: Slurm, tmp_path: Path) -> None:
    job = start(jobs, tmp_path, "waits", options=("--nodes=2",))
    assert {note(tmp_path, rank)["rank"] for rank in range(2)} == {0, 1}  # both hear signals
    jobs.run("scancel", job.id)
    assert job.reaches("CANCELLED")["Restarts"] == "0"
    wait_for(lambda: "exit code 75: Slurm ended the job" in job.log())


def test_an_array_is_a_run_for_each_task_and_each_goes_on_by_itself(jobs: Slurm, tmp_path: Path) -> None:
    """The second task is the one whose job number is the whole array's: only its full name requeues it alone."""
    for number in "1", "2":
        (tmp_path / f"seed-{number}").mkdir()
    job = submit(jobs, tmp_path, "--array=1-2", "--", tmp_path / "seed-%a", "waits", "0", "a=%a", env={"SCRIPT": RANK})
    first, second = (Job(jobs, f"{job.id}_{number}", tmp_path) for number in "12")
    told = [note(tmp_path / f"seed-{number}") for number in "12"]
    assert [each["arguments"][-1] for each in told] == ["a=1", "a=2"]
    assert len({each["environment"]["MASTER_PORT"] for each in told}) == 2
    jobs.run("scancel", "--signal=USR1", first.id)
    first.reaches("PENDING", restarts=1)
    jobs.run("scancel", "--signal=USR1", second.id)
    second.goes_on(restarts=1)
    second.reaches("COMPLETED", restarts=1)
    assert "attempt 2" in second.log()
    first.reaches("PENDING", restarts=1)
    assert not (tmp_path / "seed-1" / "rank-0-attempt-1.json").exists()
    jobs.run("scancel", job.id)
