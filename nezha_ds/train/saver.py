"""Checkpoints written while training goes on, agreed upon by all ranks.

    loop          take a snapshot ─┬─ step ─ poll ─ step ─ poll ──┬─ step ─ poll ─┬─ … tell
    every rank                     └─ write its files, sync ──────┤               │
    rank 0                                                        └─ commit, verify, prune ─ copy to the store

A thread of each rank only touches files. Agreement is the loop's own: at each step boundary while a save is under way
the ranks make one round (0.1 ms), in the thread that makes all the others, so no order of collectives can ever cross.
So a save is committed at the first step boundary after the last rank has written, and told at the one after.

What goes wrong:

- A save that fails (a full disk, a file system that is away) is told, counted and removed; older checkpoints stay, and
  the run goes on: the next save may find room. The second failure in a row ends it, and so does the failure of the last
  save.
- A save that takes longer than `train.save_seconds` from its snapshot ends the run (exit code 79): the thread is stuck
  in the file system, where nothing can stop it, and another save would wait behind it.
- Pruning waits for the new checkpoint to be read back and found whole.

Before the next save, at a stop and at the end, the save under way is waited for. One at a time, so no more than one
snapshot is in memory.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nezha_ds.errors import CheckpointError, DivergedError, Exit, LaunchError, NezhaError
from nezha_ds.files import unwritable
from nezha_ds.observe.events import Event, Save, Snapshot
from nezha_ds.train.checkpoint import State, damage, folder_name, prune, remove, remove_leftovers
from nezha_ds.train.copies import Copier
from nezha_ds.train.engine import Engine
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import TrainSettings
from nezha_ds.train.snapshot import Entries, commit, take, write

DONE, WORKING, LATE = range(3)
POLL_SECONDS = 0.02
"""Between two rounds of ranks that wait for a save."""

log = logging.getLogger(__name__)


class SaveHungError(LaunchError):
    """A save that took longer than its limit."""

    exit_code = Exit.HUNG


class Background:
    """An action in a thread that does not keep a process from ending."""

    def __init__(self, path: Path, action: Callable[[], Any]) -> None:
        """`path` is what it writes, for the message."""
        self.result: Any = None
        self.problem = ""
        """One line for people, with a way out, when it failed."""
        self._path, self._action = path, action
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `result` and `problem` are final."""
        return not self._thread.is_alive()

    def join(self, seconds: float | None) -> None:
        """Wait for the end."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            self.result = self._action()
        except OSError as error:
            self.problem = str(unwritable(self._path, error))
        except NezhaError as error:
            self.problem = str(error)
        except Exception as error:
            # A fault of ours; but the other ranks have to hear of it.
            log.exception("%s", self._path)
            self.problem = repr(error)


@dataclass
class _Saving:
    """The save under way."""

    step: int
    final: Path
    started: float
    snapshot_seconds: float
    task: Background
    committing: bool = False


class Saver:
    """Writes the checkpoints of a run below `root`. Every method is collective, but leaving after an error."""

    def __init__(
        self,
        root: Path,
        engine: Engine,
        ranks: Ranks,
        settings: TrainSettings,
        state_at: Callable[[int], State],
        files: Mapping[str, bytes],
        tell: Callable[[Event], None],
        copier: Copier | None = None,
    ) -> None:
        """`state_at` gives the state after a step; `copier` is rank 0's, where there is one."""
        self._root, self._engine, self._ranks, self._settings = root, engine, ranks, settings
        self._state_at, self._files, self._tell, self._copier = state_at, files, tell, copier
        self._saving: _Saving | None = None
        self._problem = ""
        """Of the last save."""
        self._damaged = 0
        # Before any rank writes: it has to get through a step with rank 0 first.
        if ranks.world.is_main:
            remove_leftovers(root)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Where the ranks agreed to end, they finish together; where one fell out, a commit under way is let end.
        if error is None:
            self.finish()
        elif isinstance(error, DivergedError):
            with suppress(NezhaError):
                self.finish()
        elif self._saving:
            self._saving.task.join(self._settings.save_seconds or None)

    def __call__(self, step: int) -> None:
        """Begin the checkpoint of a step; with `async_save` off, or in the end `finish`, all of it is done."""
        self._wait()
        started = time.perf_counter()
        snapshot = take(self._engine, self._state_at(step), self._files)
        seconds = time.perf_counter() - started
        final = self._root / folder_name(step)
        task = Background(final, lambda: write(snapshot, _temporary(final)))
        self._saving = _Saving(step, final, started, seconds, task)
        self._tell(Snapshot(time=time.time(), step=step, seconds=seconds))
        if not self._settings.async_save:
            self._wait()

    def poll(self) -> None:
        """Take the save under way a phase further if all ranks are done with the present one; for step boundaries.

        SaveHungError when it is late, LaunchError when it is the second in a row that failed.
        """
        saving = self._saving
        if saving is not None:
            state = self._ranks.highest(self._state(saving))
            if state == LATE:
                self._give_up(saving)
            if state == DONE:
                self._next_phase(saving)
        self._tell_copies()

    def finish(self) -> None:
        """Wait for the save under way and for the copy of the last one; LaunchError when that save failed."""
        self._wait()
        if self._problem:
            raise LaunchError(f"the last checkpoint failed: {self._problem}")
        if self._copier:
            self._copier.close()
        self._tell_copies()
        self._ranks.wait()  # a launcher may end rank 0 in the middle of its copy when another rank has ended with 75

    # ----------------------------------------------------------------------------------------------------------- inside

    def _wait(self) -> None:
        while self._saving is not None:
            self.poll()
            if self._saving is not None:
                self._saving.task.join(POLL_SECONDS)

    def _state(self, saving: _Saving) -> int:
        if saving.task.done:
            return DONE
        limit = self._settings.save_seconds
        return LATE if limit and time.perf_counter() - saving.started > limit else WORKING

    def _next_phase(self, saving: _Saving) -> None:
        """From writing to committing, or to the end."""
        outcomes: list[tuple[str, Any]] = self._ranks.gather((saving.task.problem, saving.task.result))
        problem = next((text for text, _ in outcomes if text), "")
        if problem or saving.committing:
            self._conclude(saving, problem, 0 if problem else outcomes[0][1])
            return
        entries = {name: entry for _, own in outcomes for name, entry in own.items()}
        saving.committing = True
        main = self._ranks.world.is_main
        saving.task = Background(saving.final, (lambda: self._commit(saving.final, entries)) if main else lambda: None)

    def _commit(self, final: Path, entries: Entries) -> int:
        """Rank 0: the checkpoint under its name, verified, and older ones removed; its bytes."""
        size = commit(_temporary(final), final, entries)
        if problem := damage(final):
            self._damaged = 1
            raise CheckpointError(f"checkpoint {problem} as soon as it is read back; see to the disk of {self._root}")
        try:
            in_use = self._copier.in_use() if self._copier else ()
            prune(final, self._settings.keep_last, self._settings.keep_every, in_use)
        except OSError as error:
            log.warning("old checkpoints in %s cannot be removed (%s)", self._root, error.strerror)
        return size

    def _conclude(self, saving: _Saving, problem: str, size: int) -> None:
        """Tell how it went; LaunchError when it failed as the one before it did."""
        self._saving, damaged, self._damaged = None, self._damaged, 0
        self._tell(
            Save(
                time=time.time(),
                step=saving.step,
                ok=not problem,
                seconds=time.perf_counter() - saving.started,
                bytes=size,
                free_bytes=shutil.disk_usage(self._root).free if not problem else None,
                damaged=damaged,
            )
        )
        again, self._problem = bool(problem and self._problem), problem
        if problem and self._ranks.world.is_main:
            remove(_temporary(saving.final))
        if again:
            raise LaunchError(f"two checkpoints in a row failed: {problem}")
        if problem:
            log.error(
                "the checkpoint of step %d failed: %s. Training goes on, and the next save tries again; if that fails "
                "too, the run ends",
                saving.step,
                problem,
            )
        elif self._copier:
            self._copier.submit(saving.final)

    def _give_up(self, saving: _Saving) -> None:
        late = [str(rank) for rank, done in enumerate(self._ranks.gather(saving.task.done)) if not done]
        self._saving = None
        self._tell(Save(time=time.time(), step=saving.step, ok=False, seconds=time.perf_counter() - saving.started))
        raise SaveHungError(
            f"the checkpoint of step {saving.step} is not written after train.save_seconds = "
            f"{self._settings.save_seconds:g} (rank {', '.join(late[:8])} is at it); see to the disk of {self._root} "
            "and start again, or raise the limit"
        )

    def _tell_copies(self) -> None:
        for event in self._copier.take_told() if self._copier else ():
            self._tell(event)


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp")
