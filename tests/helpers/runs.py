"""Small real runs: a model of two narrow layers on the shipped text, a DeepSpeed JSON, and the ways to start them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nezha_ds.observe.events import Event, Record
from nezha_ds.observe.journal import METRICS_FILE, read_metrics
from tests.helpers import ranks
from tests.helpers.processes import session

SCRIPT = "launch/pretrain.py"
GATED = "tests/train/scripts/gated_pretrain.py"
"""The same; begins no step beyond a given one before `open_gate`."""
STOPPING = "stopping at the end of this step"
"""What a rank says once it has noted a signal."""

RECIPE = """
[run]
folder = "{folder}"
[data]
shards = "{shards}"
length = 32
[model]
preset = "tiny"
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
[train]
steps = 12
log_every = 1
eval_every = 0
eval_samples = 40
save_every = 4
keep_last = 5
[exporter]
port = 0
"""

DEEPSPEED: dict[str, Any] = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "Lamb", "params": {"lr": 0.01}},
    "scheduler": {"type": "WarmupPolynomialLR", "params": {"warmup_steps": 3}},
    "zero_optimization": {"stage": 1},
}
BF16: dict[str, Any] = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}


@dataclass
class Run:
    """One run folder and how it is started."""

    folder: Path
    recipe: Path
    ds_config: Path
    settings: Sequence[str] = ()
    script: str = ""
    """What is started instead, with a gate and without one."""

    @property
    def arguments(self) -> list[str]:
        overrides = [part for setting in self.settings for part in ("--set", setting)]
        return ["--recipe", str(self.recipe), "--deepspeed_config", str(self.ds_config), *overrides]

    def finish(self, world_size: int = 1) -> str:
        """Run to the end under `nezha-ds launch`, or as one process without it."""
        if world_size > 1:
            return ranks.run_well(ranks.our_command(self.script or SCRIPT, *self.arguments, ranks=world_size))
        done = self.attempt()
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stdout + done.stderr

    def attempt(self) -> subprocess.CompletedProcess[str]:
        """One rank, to whatever end."""
        return subprocess.run(
            [sys.executable, self.script or SCRIPT, *self.arguments],
            env=ranks.environment() | {"MASTER_PORT": str(ranks.free_port())},
            cwd=ranks.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def start(self, world_size: int, last_step: int) -> subprocess.Popen[bytes]:
        """Start ranks in a process group of their own, and go on; they go no further than a step."""
        return subprocess.Popen(
            ranks.command(self.script or GATED, *self.arguments, ranks=world_size),
            env=self._gated(last_step),
            cwd=ranks.REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start_ranks(self, world_size: int, last_step: int) -> list[subprocess.Popen[str]]:
        """The ranks themselves, without a launcher that would change their exit codes."""
        port = ranks.free_port()
        return [self.start_rank(rank, world_size, last_step, port) for rank in range(world_size)]

    def start_rank(self, rank: int, world_size: int, last_step: int, port: int) -> subprocess.Popen[str]:
        """One of them; all meet at the port."""
        return subprocess.Popen(
            [sys.executable, self.script or GATED, *self.arguments],
            env=self._gated(last_step)
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            | {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)},
            cwd=ranks.REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _gated(self, last_step: int) -> dict[str, str]:
        return ranks.environment() | {"LAST_STEP": str(last_step), "GATE": str(self._gate)}

    def open_gate(self) -> None:
        """Let ranks that were started go on beyond their last step."""
        self._gate.touch()

    @property
    def _gate(self) -> Path:
        return self.recipe.with_name("gate")

    def events(self) -> list[Event]:
        path = self.folder / METRICS_FILE
        return read_metrics(path) if path.exists() else []

    def losses(self) -> dict[int, float]:
        """The loss of each step; of the last attempt where a step was run twice."""
        return {event.step: event.loss for event in self.events() if isinstance(event, Record)}

    def wait_for_step(self, step: int, process: "subprocess.Popen[Any]") -> None:
        """Until a process under way has done so many steps; ten minutes say that it never will."""
        end = time.monotonic() + 600
        while max(self.losses(), default=0) < step:
            assert process.poll() is None and time.monotonic() < end, f"step {step} did not come"
            time.sleep(0.01)

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:08}"

    def tensors(self, step: int) -> dict[str, bytes]:
        """The bytes of every tensor file of a checkpoint."""
        return {path.name: path.read_bytes() for path in sorted(self.checkpoint(step).glob("*.safetensors"))}


def make(folder: Path, shards: Path, *settings: str, **deepspeed: Any) -> Run:
    """A run below `folder`; `deepspeed` replaces keys of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, ds_config = folder / "recipe.toml", folder / "ds_config.json"
    recipe.write_text(RECIPE.format(folder=folder / "run", shards=shards))
    ds_config.write_text(json.dumps({**DEEPSPEED, **deepspeed}))
    return Run(folder / "run", recipe, ds_config, settings)


def kill_all(launcher: subprocess.Popen[bytes]) -> None:
    """kill -9 of the launcher and of everything that it started, until nothing of it lives."""
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    # Ranks are in the launcher's session, but in groups of their own if a shell made them: look them up.
    while living := session(launcher.pid):
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
