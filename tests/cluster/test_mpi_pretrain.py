"""launch/mpi/pretrain.sh under a real Open MPI: ranks find each other, stop by signals, and end with the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nezha_ds.observe.events import Start
from tests.helpers import ranks, runs
from tests.helpers.processes import session, wait_for
from tests.helpers.runs import Run

pytestmark = pytest.mark.ranks

SCRIPT = ranks.REPOSITORY / "launch" / "mpi" / "pretrain.sh"


@pytest.fixture(autouse=True, scope="module")
def _mpi() -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("needs Debian's openmpi-bin")


class Attempts:
    """Starts of one run, each held before a step until it was struck."""

    def __init__(self, run: Run) -> None:
        self.run, self.gate, self.number = run, run.recipe.with_name("gate"), 0
        self.log = run.recipe.with_name("log")

    def start(self) -> "subprocess.Popen[bytes]":
        """Two ranks, once they are under way."""
        self.number += 1
        held = {"SCRIPT": str(ranks.REPOSITORY / runs.GATED), "LAST_STEP": "0", "GATE": str(self.gate)}
        with self.log.open("ab") as log:
            script = subprocess.Popen(
                ["bash", SCRIPT, "--oversubscribe", "-n", "2", "--", *self.run.arguments],
                env=ranks.environment() | {"PYTHON": sys.executable, "GRACE": "5"} | held,
                stdout=log,
                stderr=log,
                cwd=ranks.REPOSITORY,
                start_new_session=True,
            )
        wait_for(lambda: sum(isinstance(event, Start) for event in self.run.events()) == self.number, script)
        return script

    def stop(self, script: "subprocess.Popen[bytes]", pid: int, blow: signal.Signals) -> int:
        """The script's exit code after a signal to one of its processes, of which a rank has heard."""
        heard = self.log.read_text().count(runs.STOPPING)
        os.kill(pid, blow)
        wait_for(lambda: self.log.read_text().count(runs.STOPPING) > heard, script)
        self.gate.touch()
        code = script.wait(timeout=600)
        self.gate.unlink()
        assert not session(script.pid)
        return code


def mpirun_of(script: "subprocess.Popen[bytes]") -> int:
    """The process that the script waits for."""
    (pid,) = [pid for pid in session(script.pid) if Path(f"/proc/{pid}/comm").read_text().startswith("mpirun")]
    return pid


def test_signals_to_the_script_and_to_mpirun_save_and_the_next_start_goes_on(
    undisturbed: Run, embedded: Path, tmp_path: Path
) -> None:
    run = runs.make(tmp_path, embedded, **runs.BF16)
    attempts = Attempts(run)
    script = attempts.start()
    assert attempts.stop(script, script.pid, signal.SIGTERM) == 75  # it becomes a USR1, which mpirun forwards
    script = attempts.start()
    assert attempts.stop(script, mpirun_of(script), signal.SIGTERM) == 1
    script = attempts.start()
    attempts.gate.touch()
    assert script.wait(timeout=600) == 0, attempts.log.read_text()[-5000:]
    assert run.tensors(12) == undisturbed.tensors(12)
