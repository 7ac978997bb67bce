"""A study that anyone can repeat on a CPU: positions, masks, spans, in a small model on the shipped text.

  make study                                    the full form: five arms, three seeds; about twenty minutes on two cores
  .venv/bin/python -m tests.study --quick       two seeds, fewer steps: under ten minutes
  .venv/bin/python -m tests.study --every-position    the three other kinds of positions too: half as long again
  .venv/bin/python -m tests.study --out docs    the full form into docs/, as it is committed

Writes study.md, study.svg and study.json. Two models are trained at a time, each by one thread. Ctrl-C at any time: the
same command goes on, and what is finished is not trained again. The same command on the same machine gives the same
numbers.
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
from tests.study.arms import FORMS
from tests.study.harness import prepare_text, run
from tests.study.report import Circumstances, page, plot
from tests.study.training import Result, write_result

FOLDER = Path(__file__).parents[2] / "build" / "study"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--quick", dest="form", action="store_const", const="quick", help="fewer seeds and steps")
    forms.add_argument(
        "--every-position",
        dest="form",
        action="store_const",
        const="every-position",
        help="all five kinds of positions",
    )
    parser.set_defaults(form="full")
    parser.add_argument(
        "--out", type=Path, help="folder of study.md, study.svg and study.json (default: build/study/FORM)"
    )
    chosen = parser.parse_args(arguments)
    form = FORMS[chosen.form]
    out: Path = chosen.out or FOLDER / form.name
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        shards = prepare_text(FOLDER)
        results = run(form, shards, FOLDER / form.name / "models", console)
        text = statistics(shards)
        told = Circumstances(
            form=form.name,
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            command=shlex.join([".venv/bin/python", "-m", "tests.study", *(arguments or sys.argv[1:])]),
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
    console.print(f"{out / 'study.md'}")
    return 0


def write(out: Path, results: Sequence[Result], told: Circumstances) -> None:
    """The page, the plot, and the rows from which both are made."""
    make_folder(out)
    rows = {"circumstances": asdict(told), "results": [write_result(result) for result in results]}
    write_atomically(out / "study.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(out / "study.svg", plot(results, told))
    write_atomically(out / "study.md", page(results, told))


if __name__ == "__main__":
    sys.exit(main())
