"""A study that anyone can repeat on a CPU: how far the batch can grow with LAMB, with AdamW, and without LAMB's ratio.

  make study-batch                                    two seeds, three batches, fewer samples: under ten minutes
  make study-batch-full                               the full form: about half an hour on two cores
  .venv/bin/python -m tests.study.batch --out docs    the full form into docs/, as it is committed

Writes study-batch.md, study-batch.svg and study-batch.json. Two models are trained at a time, each by one thread.
Ctrl-C or SIGTERM at any time: the same command goes on, and what is finished is not trained again. The same command on
the same machine gives the same numbers.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import machine

from rich.console import Console

from nezha_ds.corpus.inspect import statistics
from nezha_ds.errors import NezhaError
from nezha_ds.files import make_folder, write_atomically
from tests.study.batch.arms import FORMS
from tests.study.batch.report import page, plot
from tests.study.batch.sweep import Results, run
from tests.study.batch.training import write_result
from tests.study.harness import prepare_text
from tests.study.report import Circumstances

FOLDER = Path(__file__).parents[3] / "build" / "study-batch"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.study.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer seeds, batches, rates and samples")
    parser.add_argument(
        "--out", type=Path, help="folder of the page, its plot and its rows (default: build/study-batch/FORM)"
    )
    chosen = parser.parse_args(arguments)
    form = FORMS["quick" if chosen.quick else "full"]
    out: Path = chosen.out or FOLDER / form.name
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        shards = prepare_text(FOLDER)
        results = run(form, shards, FOLDER / form.name / "models", console)
        text = statistics(shards)
        told = Circumstances(
            form=form.name,
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            command=shlex.join([".venv/bin/python", "-m", "tests.study.batch", *(arguments or sys.argv[1:])]),
            machine=f"{machine()}, torch {version('torch')}",
            entries=text.manifest.tokenizer.vocabulary_size,
            entropy=round(text.unigram_entropy, 6),
        )
        write(out, results, told)
    except NezhaError as error:
        console.print(f"[red]{error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return 130
    console.print(f"{out / 'study-batch.md'}")
    return 0


def write(out: Path, results: Results, told: Circumstances) -> None:
    """The page, the plot, and the rows from which both are made."""
    make_folder(out)
    rows = {"circumstances": asdict(told), "results": [write_result(result) for result in results.all]}
    write_atomically(out / "study-batch.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(out / "study-batch.svg", plot(results, told))
    write_atomically(out / "study-batch.md", page(results, told))


if __name__ == "__main__":
    sys.exit(main())
