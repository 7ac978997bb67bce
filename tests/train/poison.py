"""Runs in which something goes wrong at a step of the test's choice: scripts/poisoned_pretrain.py on real ranks."""

import subprocess
import sys

from tests.helpers import ranks
from tests.helpers.runs import Run

SCRIPT = "tests/train/scripts/poisoned_pretrain.py"


def run_poisoned(run: Run, poison: str, world_size: int = 1) -> list[tuple[int, str]]:
    """Each rank's exit code and what it printed; no launcher comes between, which would change the codes."""
    shared = ranks.environment() | {"POISON": poison, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.free_port())}
    sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *run.arguments],
            env=shared | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ranks.REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    printed = [process.communicate(timeout=900)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]
