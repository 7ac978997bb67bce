"""A run that is to suffer: its folder, its ranks while they live, and what they may not leave behind."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nezha_ds.train.checkpoint import damage
from tests.helpers import faults, ranks, runs
from tests.helpers.processes import environment_of, session

STEPS, SAVE_EVERY, KEEP_LAST = 40, 5, 3
SETTINGS = (
    f"train.steps={STEPS}",
    f"train.save_every={SAVE_EVERY}",
    f"train.keep_last={KEEP_LAST}",
    "train.eval_every=8",
    "train.ledger=true",
    # Most kills come before the first new checkpoint; a scheduler would be told to give up.
    "train.max_idle_restarts=0",
)
PATIENCE = 120
"""Seconds for what must come soon, on however busy a machine."""


@dataclass(frozen=True)
class Setup:
    """A kind of run, of which an undisturbed one is made for comparison."""

    deepspeed: Mapping[str, Any]
    world_size: int = 2
    launcher: Literal["nezha-ds launch", "deepspeed"] = "nezha-ds launch"


SETUPS = {
    "bf16 ZeRO-1": Setup(runs.BF16),
    "fp32 ZeRO-2, by deepspeed": Setup({"zero_optimization": {"stage": 2}}, launcher="deepspeed"),
    "fp32 ZeRO-0": Setup({"zero_optimization": {"stage": 0}}),
    "bf16 ZeRO-2, one rank": Setup({**runs.BF16, "zero_optimization": {"stage": 2}}, world_size=1),
}


@dataclass
class Scene:
    """One run, and the start of it that is under way, if any."""

    run: runs.Run
    setup: Setup
    rng: random.Random
    output: Path
    """What everybody prints."""
    process: "subprocess.Popen[bytes] | None" = None
    ports: list[int] = field(default_factory=list)
    damaged: set[Path] = field(default_factory=set)
    """Checkpoints that we broke."""

    def start(self, own: faults.Faults | None = None, *, rank: int = 0, clock: str = "") -> None:
        """Start the ranks under their launcher, in a session of their own; root obeys permissions."""
        command = self._command()
        with self.output.open("ab") as output:
            # Through a pipe, which no limit on the size of files concerns.
            sink = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output, start_new_session=True)
        assert sink.stdin
        with sink.stdin as pipe:
            self.process = subprocess.Popen(
                [*faults.OBEDIENT, *command],
                env=faults.environment(own or [], rank=rank, clock=clock),
                cwd=ranks.REPOSITORY,
                stdout=pipe,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        if self.setup.launcher == "deepspeed":
            command = ranks.command(runs.SCRIPT, *self.run.arguments, ranks=self.setup.world_size)
            self.ports.append(int(command[command.index("--master_port") + 1]))
            return command
        self.ports.append(ranks.free_port())
        where = ["--ranks", str(self.setup.world_size), "--master", f"127.0.0.1:{self.ports[-1]}"]
        return [sys.executable, "-m", "nezha_ds.cli", "launch", *where, "--", *self.run.arguments]

    @property
    def living(self) -> list[int]:
        """The processes of this start."""
        return session(self.process.pid) if self.process else []

    def rank(self, number: int) -> int | None:
        """The process of a rank, if it lives already."""
        own = [pid for pid in self.living if f"RANK={number}".encode() in environment_of(pid)]
        # Whatever a rank starts has its environment, and a later number.
        return min(own, default=None)

    def wait(self, there: Callable[[], bool], seconds: float = 10 * PATIENCE) -> bool:
        """Until something is there; False when the launcher ends before, or after so long."""
        assert self.process
        end = time.monotonic() + seconds
        while not there():
            if self.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def end(self, seconds: float = 10 * PATIENCE) -> tuple[int, int]:
        """Wait for the launcher, then for what it started: its exit code, and how many had to be killed."""
        assert self.process
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = 1
        end = time.monotonic() + PATIENCE
        while self.living and time.monotonic() < end:
            time.sleep(0.05)
        return code, self.kill()

    def kill(self) -> int:
        """kill -9 of everything; how many there were."""
        if not self.process:
            return 0
        count = len(self.living)
        # Whoever is starting a process while we look is found at the next look.
        while living := self.living:
            for pid in living:
                send(pid, signal.SIGKILL)
        self.process.wait()
        return count

    def newest(self) -> int:
        """The step of the newest checkpoint by name; 0: none."""
        return max((int(path.name[5:]) for path in self.checkpoints()), default=0)

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.run.folder / "checkpoints").glob("step-*"))

    def steps(self) -> int:
        """Steps that the log knows of."""
        return max(self.run.losses(), default=0)

    def wrongs(self) -> Iterator[str]:
        """What no fault may leave: a checkpoint under its name that is not whole."""
        self.damaged &= set(self.checkpoints())
        for path in self.checkpoints():
            if path not in self.damaged and (told := damage(path)):
                yield told

    def leftovers(self) -> Iterator[str]:
        """What a finished run may not leave."""
        for name in faults.half_named(self.run.folder):
            yield f"{name} is left in the run folder"
        for port in self.ports:
            for path in Path("/dev/shm").glob(f"*_{port}_*"):
                yield f"{path} is left"
        for path in Path(os.environ["TORCH_EXTENSIONS_DIR"]).glob("**/lock"):
            yield f"{path} is left"


def send(pid: int | None, number: signal.Signals) -> bool:
    """A signal to a process that may have ended; whether it got it."""
    with suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, number)
            return True
    return False


@contextmanager
def disk(folder: Path, mounted: bool) -> Iterator[Path]:
    """A folder for runs: a small disk of its own where one can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    while folder.is_mount():  # left by a torture that was killed
        subprocess.run(["umount", "--lazy", folder], check=True)
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


def can_mount(folder: Path) -> bool:
    """A container that runs as root may still not be allowed to."""
    try:
        with disk(folder, mounted=True):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
