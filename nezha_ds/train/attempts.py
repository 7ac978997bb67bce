"""One run at a time in a folder, and an end to restarts that come no further.

A scheduler that starts a failed run again does so for ever: a model too large for the memory, a document that breaks
the step, a bad device. So rank 0 notes in `attempts.jsonl` where each attempt began (the newest checkpoint's step) and
how it ended, and a start is refused after `train.max_idle_restarts` attempts in a row that left no newer checkpoint.

What counts is an attempt that was killed, crashed, hung or diverged; a kill leaves no time for a last line, so one
without it was killed. What does not count, and ends no row either: one that was stopped by a signal, as preemption is
no fault of the run's; one that was refused (exit code 2), after which nobody starts again without mending something;
and one that is done.
"""

import json
import logging
import time
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nezha_ds.errors import Exit, NezhaError, NoProgressError
from nezha_ds.files import make_folder, unwritable
from nezha_ds.lock import holding, this_process
from nezha_ds.observe.layout import ATTEMPTS
from nezha_ds.train.folder import CHECKPOINTS
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import variable

LOCK = ".run.lock"
INNOCENT = (Exit.DONE, Exit.STOPPED, Exit.REFUSED)
"""Ends that do not count."""

log = logging.getLogger(__name__)


@dataclass
class Attempt:
    """This start of the run."""

    exit_code: int = 1
    """How it ends; set before the attempt is left."""
    number: int = 1
    """How many were begun in this folder, this one included; those that were refused are not among them."""


@contextmanager
def attempt(folder: Path, limit: int, ranks: Ranks) -> Generator[Attempt]:
    """Be the only run in the folder, and note the attempt there; collective.

    LaunchError on every rank when another run is in it, NoProgressError after `limit` restarts (0: none) that came no
    further.
    """
    own, problem = Attempt(), None
    with ExitStack() as held:
        if ranks.world.is_main:
            try:
                held.enter_context(alone_in(folder))
                held.enter_context(_noted(own, folder, limit))
            except NezhaError as error:
                problem = error
        problem, own.number = ranks.gather((problem, own.number))[0]
        if problem:
            raise problem
        yield own


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep every other run out of the folder. LaunchError names host and process of the one that is in it."""

    def warn(reason: str) -> None:
        log.warning("no lock on %s (%s); start no second run in it", folder, reason)

    busy = "has a run in it already ({holder}); wait for it or end it, or choose another run.folder"
    return holding(folder / LOCK, f"{str(folder).replace('{', '{{').replace('}', '}}')} {busy}", warn)


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint of a run, 0 without one."""
    names = (path.name.removeprefix("step-") for path in (folder / CHECKPOINTS).glob("step-*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def idle_attempts(lines: Iterable[dict[str, Any]], step: int) -> int:
    """How many attempts in a row, up to the last, began at `step` or beyond and were not ended in innocence."""
    begun: dict[str, int] = {}
    for line in lines:
        if "began_at" in line:
            if line["began_at"] < step:
                begun.clear()
            else:
                begun[line["attempt"]] = line["began_at"]
        elif line.get("exit_code") in INNOCENT:
            begun.pop(line["attempt"], None)
    return len(begun)


@contextmanager
def _noted(own: Attempt, folder: Path, limit: int) -> Generator[None]:
    path, step = make_folder(folder) / ATTEMPTS, newest_step(folder)
    lines = _read(path)
    idle, own.number = idle_attempts(lines, step), 1 + sum("began_at" in line for line in lines)
    if limit and idle >= limit:
        raise NoProgressError(
            f"the last {idle} attempts at {folder} ended before they saved anything beyond step {step}; see in their "
            f"logs how each ended (memory, device, text), mend it, and delete {path} or raise train.max_idle_restarts "
            f"(now {limit}) to go on"
        )
    name = f"{this_process()} at {time.time():.3f}"
    begun = {"attempt": name, "began_at": step, "job": variable("SLURM_JOB_ID")}
    try:
        _append(path, begun)
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        yield
    except NezhaError as error:
        own.exit_code = error.exit_code
        raise
    finally:
        try:
            _append(path, {"attempt": name, "exit_code": own.exit_code, "step": newest_step(folder)})
        except OSError as error:
            log.warning("%s cannot be written (%s); this attempt will count as killed", path, error.strerror)


def _append(path: Path, line: dict[str, Any]) -> None:
    # After a line end: a line that a power cut tore takes none of the next with it.
    with path.open("ab", buffering=0) as file:
        file.write(f"\n{json.dumps(line)}\n".encode())


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("attempt"), str):
            lines.append(line)
    return lines
