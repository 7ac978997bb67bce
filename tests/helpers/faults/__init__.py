"""Faults for real runs: where in a save they come, how a run gets them, and what must not be left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tests.helpers import ranks
from tests.helpers.runs import SCRIPT, Run

Faults: TypeAlias = list[tuple[Any, ...]]
"""(when, what, arguments …) each: see sitecustomize.py."""

OBEDIENT = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]
"""Before a command: it obeys the permissions of folders even as root."""

PHASES: Mapping[str, Sequence[str]] = {
    "begin": [r"os\.mkdir \S*/\.{new}"],
    "moments": [r"open \S*/\.{new}\S*/\S*moments-"],
    "weights": [r"os\.rename \S*/\.{new}\S* \S*/model\.safetensors$"],
    "state": [r"os\.rename \S*/\.{new}\S* \S*/state\.json$"],
    "manifest": [r"os\.rename \S*/\.{new}\S* \S*/manifest\.json$"],
    "rename": [r"os\.rename \S*/\.{new}\S* \S*/{new}$"],
    "prune": [r"os\.rename \S*/{old} \S*/\.{old}"],
    "removal": [r"shutil\.rmtree \S*/\.{old}\.old", r"os\.remove ", r"os\.remove "],
}
"""The phases of a save: the operations that come first in each, in order. `new` and `old` are folders' names."""


def at(phase: str, what: str, *arguments: Any, new: int, old: int | None = None, rank: int = 0) -> Faults:
    """A fault in a phase of the save of step `new`, which removes that of step `old`, or any; moments are of a rank."""
    names = {"new": f"step-{new:08}", "old": r"step-\d+" if old is None else f"step-{old:08}"}
    *before, last = [when.format(**names) for when in PHASES[phase]]
    return [
        *((when, "go_on") for when in before),
        (last + (f"{rank:05}" if phase == "moments" else ""), what, *arguments),
    ]


def environment(faults: Sequence[tuple[Any, ...]] = (), *, rank: int = 0, clock: str = "") -> dict[str, str]:
    """The environment of ranks, one of which has the faults, under a clock that may be "jumping"."""
    told = {"FAULTS": json.dumps(list(faults)), "FAULT_RANK": str(rank), "CLOCK": clock}
    base = ranks.environment()
    return base | told | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), base["PYTHONPATH"]])}


def run_alone(script: str, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """One rank without a launcher, to whatever end; root obeys permissions."""
    return subprocess.run(
        [*OBEDIENT, sys.executable, script, *arguments],
        env={**env, "MASTER_PORT": str(ranks.free_port())},
        cwd=ranks.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@dataclass(frozen=True)
class Launched:
    """How a launcher ended."""

    returncode: int
    leader: int
    """The session of everything that it started."""
    port: int


def run_launched(run: Run, world_size: int, env: Mapping[str, str]) -> Launched:
    """Ranks under the deepspeed launcher, to whatever end."""
    command = ranks.command(SCRIPT, *run.arguments, ranks=world_size)
    process = subprocess.Popen(command, env=dict(env), cwd=ranks.REPOSITORY, start_new_session=True)
    return Launched(process.wait(timeout=900), process.pid, int(command[command.index("--master_port") + 1]))


def half_named(folder: Path) -> list[str]:
    """What a finished run may not leave in its folder: names that begin with a dot or say that they are temporary."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.name.startswith(".") or path.suffix in (".tmp", ".old", ".lock")
    ]
