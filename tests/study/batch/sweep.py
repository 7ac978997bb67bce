"""The study from end to end: a sweep at the smallest batch, base rates from it, then the table and the other sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tests.study import pool
from tests.study.batch.arms import SWEPT, Form, Point, base_sweep, largest_sweep, table
from tests.study.batch.training import Model, Result, read_result


@dataclass(frozen=True)
class Results:
    """All models of a form, by what they were trained for."""

    base: list[Result]
    """At the smallest batch, by rate."""
    table: list[Result]
    largest: list[Result]
    """At the largest batch, by rate."""

    @property
    def all(self) -> list[Result]:
        """As they were made."""
        return self.base + self.table + self.largest


def run(form: Form, shards: Path, folder: Path, console: Console) -> Results:
    """The results of a form; what lies in the folder already is not made again."""

    def trained(points: Sequence[Point]) -> list[Result]:
        jobs = [Model(point, shards) for point in points]
        return [read_result(row) for row in pool.run(jobs, folder, console, "samples")]

    base = trained(base_sweep(form))
    bases = base_rates(base)
    console.print("base rates: " + ", ".join(f"{optimizer} {rate:g}" for optimizer, rate in bases.items()))
    compared = table(form, bases)
    rest = trained([*compared, *largest_sweep(form, bases)])
    return Results(base, rest[: len(compared)], rest[len(compared) :])


def base_rates(results: Sequence[Result]) -> dict[str, float]:
    """Of each optimizer, the rate that had the lowest held-out loss at the smallest batch."""
    return {optimizer: best(results, swept).rate for optimizer, swept in SWEPT.items()}


def best(results: Sequence[Result], optimizer: str) -> Result:
    """An optimizer's model with the lowest held-out loss."""
    return min((one for one in results if one.optimizer == optimizer), key=height)


def height(result: Result) -> float:
    """The loss, infinite where the training diverged."""
    return float("inf") if result.loss is None else result.loss
