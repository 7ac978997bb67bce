"""Our speed beside what a user would take instead.

  make bench                                    every row, five runs a side: about twenty minutes
  .venv/bin/python -m tests.bench step-512      the rows whose names begin so
  .venv/bin/python -m tests.bench --quick       most rows, three runs a side: six minutes
  .venv/bin/python -m tests.bench --markdown    the last call's table as docs/benchmarks.md shows it; measures nothing

Prints a table and writes build/bench.json, a list of rows. Both sides run in processes of their own and take turns;
the rivals live in .venv-bench (`make .venv-bench`). On a busy machine trust the ratios only.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.harness import REPOSITORY, Result, Side, SideError, compare, markdown, share, take_turns
from tests.bench.rows import ROWS, Row

FOLDER = REPOSITORY / "build" / "bench"
RESULTS = REPOSITORY / "build" / "bench.json"
OURS = Path(sys.executable)
RIVALS = REPOSITORY / ".venv-bench" / "bin" / "python"
RUNS, QUICK_RUNS = 5, 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows whose names begin so; all when left out")
    parser.add_argument("--quick", action="store_true", help=f"most rows, {QUICK_RUNS} runs a side instead of {RUNS}")
    parser.add_argument(
        "--markdown", action="store_true", help="print build/bench.json as Markdown, and measure nothing"
    )
    chosen = parser.parse_args(arguments)
    if chosen.markdown:
        if not RESULTS.exists():
            parser.error(f"{RESULTS} is missing; measure first")
        print(markdown([Result(**row) for row in json.loads(RESULTS.read_text())]))
        return 0
    if chosen.names:
        rows = [row for row in ROWS if row.name.startswith(tuple(chosen.names))]
    else:
        rows = [row for row in ROWS if row.quick or not chosen.quick]
    if not rows:
        parser.error(f"no row begins with {' or '.join(chosen.names)}; there are {', '.join(row.name for row in ROWS)}")
    if not RIVALS.exists():
        parser.error(f"{RIVALS} is missing; run `make .venv-bench`")
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        results = _measure_all(rows, QUICK_RUNS if chosen.quick else RUNS, console)
    except SideError as error:
        print(error, file=sys.stderr)
        return 1
    RESULTS.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    _print(results, console)
    return 0


def _measure_all(rows: Sequence[Row], runs: int, console: Console) -> list[Result]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with console.status("material") as status:
        for make in dict.fromkeys(make for row in rows for make in row.material):
            make(FOLDER)
        results: list[Result] = []
        for row in rows:
            status.update(row.name)
            results += _measure(row, runs)
    return results


def _measure(row: Row, runs: int) -> Iterator[Result]:
    folder = {"folder": str(FOLDER)} if row.material else {}
    options = folder | dict(row.options)
    their_options = options if row.their_options is None else folder | dict(row.their_options)
    python = OURS if row.beside_ourselves else RIVALS
    with ExitStack() as stack:

        def open_side(python: Path, module: str, options: Mapping[str, Any], log: str) -> Side:
            side = Side(python, f"tests.bench.{module}", dict(options), row.threads, FOLDER / f"{row.name}{log}.log")
            return stack.enter_context(side)

        sides = [open_side(OURS, row.ours, options, ".ours"), open_side(python, row.theirs, their_options, "")]
        if row.share:
            sides.append(open_side(OURS, "ours.product", {"dtype": row.share.dtype}, ".product"))
        for side in sides:
            side.wait()
        mine, other, *yardstick = take_turns(*sides, runs=runs)
    speeds = [[one.speed * row.scale for one in side] for side in (mine, other)]
    yield compare(row.name, row.unit, row.rival, *speeds, note=row.note)
    if row.memory:
        memory = [[one.memory for one in side] for side in (mine, other)]
        note = "most memory during those steps: weights, gradients, activations, buffers; not the imported libraries"
        yield compare(row.memory, "MiB", row.rival, *memory, note=note, smaller=True)
    if row.share:
        yield share(row.share.name, row.rival, row.share.flops, mine, other, yardstick[0])


def _print(results: Iterable[Result], console: Console) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    table = Table(caption=f"{os.cpu_count()} cores, load {load}; medians (lowest–highest); ratio above 1: we are ahead")
    table.add_column("row", no_wrap=True)
    table.add_column("unit")
    table.add_column("ours", justify="right")
    table.add_column("theirs", justify="right")
    table.add_column("ratio", justify="right", style="bold")
    table.add_column("rival", overflow="fold")
    for one in results:
        table.add_row(
            one.name,
            one.unit,
            _shown(one.ours, one.ours_range),
            _shown(one.theirs, one.theirs_range),
            f"{one.ratio:.2f}",
            one.rival,
        )
    console.print(table)
    console.print(f"what both sides do, and every number: {RESULTS.relative_to(REPOSITORY)}")


def _shown(middle: float, ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{middle:.4g} ({low:.4g}–{high:.4g})"


if __name__ == "__main__":
    sys.exit(main())
