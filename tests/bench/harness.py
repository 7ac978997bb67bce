"""Two warm processes take turns, ours and theirs, so that whatever else the machine does meets both alike.

A reading is one run of one side. A result is the median over the runs of each side and the ratio of the medians, turned
so that above 1 we are the better: faster, or smaller.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]


class Reading(NamedTuple):
    """One run of a side."""

    amount: float
    """Work done, in the row's own unit."""
    seconds: float
    memory: float
    """MiB above what the imported libraries take, at the highest."""

    @property
    def speed(self) -> float:
        """Work a second."""
        return self.amount / self.seconds


@dataclass(frozen=True)
class Result:
    """One line of the table and of bench.json."""

    name: str
    unit: str
    ours: float
    rival: str
    theirs: float
    ratio: float
    """Larger is better for us."""
    runs: int
    ours_range: tuple[float, float]
    theirs_range: tuple[float, float]
    note: str


class SideError(Exception):
    """A side ended before its time; the text holds the end of what it wrote to stderr."""


class Side:
    """A process of `side.py`, from its start to its end; use it in `with`."""

    def __init__(self, python: Path, module: str, options: dict[str, Any], threads: int, log: Path) -> None:
        self._module, self._log = module, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", "tests.bench.side", module, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=REPOSITORY,
                env=environment(threads),
            )

    def wait(self) -> None:
        """Return when the side is ready to run."""
        self._read()

    def run(self) -> Reading:
        """One run."""
        assert self._process.stdin
        try:
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_read` tells why it ended
        return Reading(**self._read())

    def _read(self) -> dict[str, float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SideError(f"{self._module} ended with exit code {self._process.wait()}:\n{self._end_of_log()}")
        return json.loads(line)

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def environment(threads: int) -> dict[str, str]:
    """This process's, with a number of threads for every library that starts some."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return os.environ | dict.fromkeys(names, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}


def take_turns(*sides: Side, runs: int) -> list[list[Reading]]:
    """One run each that does not count, then ours, theirs, ours, theirs …; the readings of each side."""
    turns = [[side.run() for side in sides] for _ in range(runs + 1)]
    return [list(readings) for readings in zip(*turns[1:], strict=True)]


def markdown(results: Sequence[Result]) -> str:
    """The table as docs/benchmarks.md shows it: three digits, and commas from a thousand on."""
    lines = ["| row | unit | ours | rival | theirs | ratio |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {one.name} | {one.unit} | {_digits(one.ours)} | {one.rival} | {_digits(one.theirs)} | {one.ratio:.2f} |"
        for one in results
    ]
    return "\n".join(lines)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def compare(
    name: str, unit: str, rival: str, ours: Sequence[float], theirs: Sequence[float], note: str, smaller: bool = False
) -> Result:
    """Medians and their ratio; `smaller` where less is better."""
    mine, other = median(ours), median(theirs)
    return Result(
        name=name,
        unit=unit,
        ours=mine,
        rival=rival,
        theirs=other,
        ratio=other / mine if smaller else mine / other,
        runs=len(ours),
        ours_range=(min(ours), max(ours)),
        theirs_range=(min(theirs), max(theirs)),
        note=note,
    )


def share(
    name: str, rival: str, flops: int, ours: Sequence[Reading], theirs: Sequence[Reading], products: Sequence[Reading]
) -> Result:
    """Percent of the speed of a matrix product, of the median of its runs, that FLOPs of both sides' units reach."""
    fastest = median(one.speed for one in products)
    percents = [[100 * flops * one.speed / fastest for one in side] for side in (ours, theirs)]
    note = (
        f"{flops / 1e9:.1f} GFLOP a sample, which the step's matrix products need (nezha_ds/model/flops.py), by the "
        f"time of the row above; torch.mm of squares of the same dtype made {fastest / 1e9:,.0f} GFLOP/s in this run"
    )
    return compare(name, "% of torch.mm", rival, *percents, note=note)
