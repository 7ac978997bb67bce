"""Jobs of launch/slurm/ on the Slurm of `slurm.py`: submitted, watched, sent on."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import ranks
from tests.helpers.processes import wait_for
from tests.helpers.slurm import Slurm

PRETRAIN = ranks.REPOSITORY / "launch" / "slurm" / "pretrain.sbatch"


_UNDER_WAY = ("PENDING", "RUNNING", "COMPLETING", "PREEMPTED")


@dataclass(frozen=True)
class Job:
    """A job of `launch/slurm/*.sbatch`, submitted where its logs go."""

    cluster: Slurm
    id: str
    folder: Path

    def facts(self) -> dict[str, str]:
        """What `scontrol show job` tells: JobState, Restarts, ExitCode …"""
        done = self.cluster.run("scontrol", "show", "job", self.id)
        assert done.returncode == 0, done.stderr
        return dict(re.findall(r"(\w+)=(\S*)", done.stdout))

    def reaches(self, state: str, restarts: int = 0) -> dict[str, str]:
        """Its facts, once it is in that state; COMPLETING is none yet."""

        def there() -> dict[str, str]:
            facts = self.facts()
            assert facts["JobState"] in {state, *_UNDER_WAY}, f"{facts['JobState']}: {self.log()[-3000:]}"
            return facts if facts["JobState"] == state and int(facts["Restarts"]) == restarts else {}

        return wait_for(there)

    def goes_on(self, restarts: int, *changes: str) -> None:
        """Start it soon, where Slurm would wait two minutes after a requeue; not in the same second, in which a node
        takes it for the attempt that was ended.
        """
        self.reaches("PENDING", restarts)
        self.update("StartTime=now+2", *changes)

    def update(self, *changes: str) -> None:
        done = self.cluster.run("scontrol", "update", f"JobId={self.id}", *changes)
        assert done.returncode == 0, done.stderr

    def log(self) -> str:
        """The job's own log."""
        path = self.folder / f"slurm-{self.id}.out"
        return path.read_text() if path.exists() else ""

    def rank_log(self, rank: int) -> str:
        path = self.folder / f"slurm-{self.id}-ranks" / f"rank-{rank}.log"
        return path.read_text() if path.exists() else ""


def submit(
    cluster: Slurm, folder: Path, *words: object, script: Path = PRETRAIN, env: Mapping[str, object] | None = None
) -> Job:
    """sbatch in a folder: options, arguments of the script behind `--`, and variables of the environment."""
    options, arguments = list(map(str, words)), []
    if "--" in options:
        at = options.index("--")
        options, arguments = options[:at], options[at + 1 :]
    variables = [f"{name}={value}" for name, value in {"PYTHON": sys.executable, **(env or {})}.items()]
    done = cluster.run(
        "env", *variables, "sbatch", "--parsable", f"--chdir={folder}", *options, str(script), *arguments
    )
    assert done.returncode == 0, done.stderr
    return Job(cluster, done.stdout.strip(), folder)
