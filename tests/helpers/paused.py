"""Runs that stand still at a place of the test's choice until it lets them go on, and what they say meanwhile."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import ranks
from tests.helpers.processes import session, wait_for
from tests.helpers.runs import Run

SCRIPT = "tests/train/scripts/paused_pretrain.py"


@dataclass
class Paused:
    """A run under way: whatever started it, and the ranks that stand still."""

    process: "subprocess.Popen[bytes]"
    folder: Path

    @property
    def said(self) -> str:
        """Everything that all of its processes have printed so far."""
        return (self.folder / "log").read_text(errors="replace")

    def wait_at_place(self, *numbers: int) -> None:
        """Until these ranks stand at the place."""
        for number in numbers:
            wait_for((self.folder / f"at-{number}").exists, self.process)

    def wait_until_said(self, text: str, times: int = 1) -> None:
        """Until it was printed so often; by a process of the run that may have lost what started it."""
        wait_for(lambda: self.said.count(text) >= times)

    def go_on(self) -> None:
        """Open the gate."""
        (self.folder / "gate").touch()

    def end(self) -> int:
        """Open the gate, and the exit code."""
        self.go_on()
        return self.process.wait(600)

    def ranks(self) -> dict[int, int]:
        """Process id by rank, of those that live."""
        lines = [line for line in self.living() if SCRIPT in _command(line)]
        return {int(_variable(pid, "RANK") or 0): pid for pid in lines}

    def living(self) -> list[int]:
        """Every process of the session that the run was started in."""
        return session(self.process.pid)


@contextmanager
def started(run: Run, place: str, *launcher: str, only_rank: int | None = None) -> Iterator[Paused]:
    """The run, standing still at a place; `launcher` is what starts the script, else it is one process."""
    folder = run.recipe.parent / f"paused-{len([*run.recipe.parent.glob('paused-*')])}"
    folder.mkdir()
    env = ranks.environment() | {"PAUSE_AT": place, "GATE": str(folder / "gate"), "PYTHONUNBUFFERED": "1"}
    env |= {} if only_rank is None else {"ONLY_RANK": str(only_rank)}
    env |= {} if launcher else {"MASTER_PORT": str(ranks.free_port())}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*(launcher or (sys.executable, SCRIPT)), *run.arguments],
            env=env,
            cwd=ranks.REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    paused = Paused(process, folder)
    try:
        yield paused
    finally:
        for pid in paused.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def ours(count: int, *options: str) -> list[str]:
    """`nezha-ds launch` of so many ranks of the script."""
    program = [sys.executable, "-m", "nezha_ds.cli", "launch", "--ranks", str(count)]
    return [*program, *options, "--script", SCRIPT, "--"]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _variable(pid: int, name: str) -> str:
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"):
            if entry.startswith(f"{name}="):
                return entry.partition("=")[2]
    return ""
