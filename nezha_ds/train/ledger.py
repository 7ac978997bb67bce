"""The audit ledger: which samples each rank fed to each step, and the proof that none was lost or repeated.

    ledger/attempt-0003-step-00000004-ranks-2/rank-00001.jsonl     {"step":4,"samples":[17,4711,…]} a line

A rank notes a step before it computes it (step 4 is the one that follows four finished steps), in one write to the
kernel, so a line outlives `kill -9` of its process and needs no fsync. A line is an intention and no more: the step
counts once a checkpoint of it or of a later one exists, which no rank reaches without having noted it. So a run that
stands at a checkpoint of step s is proven by the lines of steps 0 … s - 1, each in the last attempt that made it; lines
of steps that a later attempt did again must hold the same samples, and lines beyond s are of steps that nobody
finished.

A line that a full disk refuses is kept and written with the next. Costs 0.1 ms and 8 kB a step and rank at 1,024
samples each, 60 MB a rank for a whole run of 7,000 steps; `train.ledger = true` turns it on. The proof reads the lines
of one step at a time.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from itertools import zip_longest
from pathlib import Path

import numpy as np

from nezha_ds.batch import Batch
from nezha_ds.config import load
from nezha_ds.data.mixture import MixedOrder, open_mixture
from nezha_ds.data.order import Numbers
from nezha_ds.errors import DataError
from nezha_ds.files import make_folder, unwritable
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.folder import DS_CONFIG, RECIPE
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import Recipe

LEDGER = "ledger"

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------- writing


class Ledger:
    """One rank's notes of one attempt; without a file it notes nothing."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._pending = b""
        """Lines that the disk has not taken yet; never more than between two checkpoints, which need the disk too."""
        self._size = 0
        if path:
            try:
                self._file = path.open("xb", buffering=0)
            except OSError as error:
                raise unwritable(path, error) from None

    def note(self, step: int, batches: Sequence[Batch]) -> None:
        """Write down the samples that this rank will feed to the step that follows `step` finished ones."""
        if self._file:
            samples = [number for batch in batches for number in batch.sample_ids.tolist()]
            self._write(json.dumps({"step": step, "samples": samples}, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file, and say so when lines are missing in it."""
        if self._file:
            if self._pending:
                self._write(b"")
            self._file.close()
            if self._pending:
                log.warning("%s lacks %d lines that could not be written", self.path, self._pending.count(b"\n"))

    def _write(self, line: bytes) -> None:
        assert self._file
        refused, self._pending = bool(self._pending), self._pending + line
        try:
            rest = memoryview(self._pending)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            if not refused:
                log.warning("%s cannot be written (%s); its lines wait in memory", self.path, error.strerror)
        else:
            self._size += len(self._pending)
            self._pending = b""


def open_ledger(root: Path, step: int, ranks: Ranks) -> Ledger:
    """This rank's ledger of an attempt that goes on from `step`; collective. LaunchError when it cannot be written."""
    name = f"attempt-{len(find_attempts(root)) + 1:04}-step-{step:08}-ranks-{ranks.world.world_size}"
    name = ranks.gather(name)[0]
    return Ledger(make_folder(root / name) / f"rank-{ranks.world.rank:05}.jsonl")


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Attempt:
    """One start of a run, as its folder's name tells it."""

    folder: Path
    number: int
    first: int
    """Finished steps of the checkpoint that it went on from."""
    world_size: int

    def steps(self) -> Iterator[tuple[int, list[Numbers | None]]]:
        """Every step that a rank noted, in order, with the samples of each rank; None for one that did not note it."""
        files = [self.rank(number) for number in range(self.world_size)]
        for step, parts in enumerate(zip_longest(*files), self.first):
            yield step, list(parts)

    def rank(self, number: int) -> Iterator[Numbers]:
        """The samples that a rank noted, step after step; DataError when a line is none, but for a torn last one."""
        path = self.folder / f"rank-{number:05}.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            for step, line in enumerate(file, self.first):
                if line.endswith(b"\n"):
                    yield _parse(path, line, step)


_NAME = re.compile(r"attempt-(\d+)-step-(\d+)-ranks-(\d+)")


def find_attempts(root: Path) -> list[Attempt]:
    """The attempts of a ledger, in the order in which they began."""
    names = [(path, _NAME.fullmatch(path.name)) for path in root.glob("attempt-*")]
    attempts = [Attempt(path, *map(int, name.groups())) for path, name in names if name]
    return sorted(attempts, key=lambda attempt: attempt.number)


def _parse(path: Path, line: bytes, step: int) -> Numbers:
    try:
        told = json.loads(line)
        if told["step"] == step:
            return np.array(told["samples"], np.int64)
    except (ValueError, TypeError, KeyError):
        pass
    raise DataError(f"{path} does not tell of step {step} where it should; was it changed?")


# ----------------------------------------------------------------------------------------------------------- proving


@dataclass(frozen=True)
class Audit:
    """What a ledger proves."""

    steps: int
    """Steps of the run as it stands, each shown to have had exactly the samples of the order."""
    samples: int
    attempts: int
    repeated: int
    """Steps that an attempt noted in vain and that were done again, or are still to be, with the same samples."""
    faults: tuple[str, ...]
    """What contradicts the order; empty: proven."""


def audit(root: Path, done: int, order: Callable[[int], Numbers]) -> Audit:
    """Hold the ledger of a run with a checkpoint at step `done` against its order.

    `order` gives the samples of the step that follows so many finished ones. DataError when a file is no ledger.
    """
    attempts = find_attempts(root)
    if not attempts:
        return Audit(0, 0, 0, 0, (f"{root} holds no attempt",) if done else ())
    faults = [] if attempts[0].first == 0 else [f"steps 0 to {attempts[0].first - 1} were noted by nobody"]
    samples = repeated = 0
    for place, attempt in enumerate(attempts):
        # Whoever goes on from a checkpoint undoes what came after it.
        end = min([later.first for later in attempts[place + 1 :]], default=done)
        noted = attempt.first
        for step, parts in attempt.steps():
            counts = step < end
            difference = _differ(parts, order(step), whole=counts)
            faults += [f"{attempt.folder.name}, step {step}: {difference}"] if difference else []
            samples += sum(len(part) for part in parts if part is not None) if counts else 0
            repeated += not counts
            noted = step + 1
        if noted < end:
            faults.append(f"{attempt.folder.name}: steps {noted} to {end - 1} were noted by nobody")
    return Audit(done, samples, len(attempts), repeated, tuple(faults))


def audit_run(folder: Path, done: int) -> Audit:
    """The same for a run folder, whose recipe and JSON tell the order; `done` is its newest checkpoint's step."""
    recipe = load(Recipe, folder / RECIPE)
    batch = load_ds_config(folder / DS_CONFIG, world_size=1).batch
    mixture = open_mixture(recipe.data, "train")
    with closing(mixture):
        order = MixedOrder(mixture, recipe.train.seed)

        def samples_of(step: int) -> Numbers:
            numbers = np.arange(batch.samples_before(step), batch.samples_before(step + 1), dtype=np.int64)
            return order.place(numbers)[0]

        return audit(folder / LEDGER, done, samples_of)


def _differ(parts: Sequence[Numbers | None], expected: Numbers, *, whole: bool) -> str:
    """In what the samples of the ranks differ from those of the order; those who noted nothing, only if it is whole."""
    silent = [rank for rank, part in enumerate(parts) if part is None]
    if silent and whole:
        return f"rank {', '.join(map(str, silent))} noted nothing"
    held = Counter(int(number) for part in parts if part is not None for number in part)
    due = Counter(expected.tolist())
    lost, extra = due - held, held - due
    found = {
        "lost": [] if silent else list(lost),
        "repeated": [number for number in extra if number in due],
        "not its own": [number for number in extra if number not in due],
    }
    return ", ".join(f"{what} {some[:5]}" for what, some in found.items() if some)
