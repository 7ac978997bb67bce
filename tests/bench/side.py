"""One side of a comparison: a process that is warm, runs once when asked, and tells the time and the memory it took.

    PYTHON -m tests.bench.side MODULE '{"option": …}'

MODULE has a function `side(**options)` that prepares everything and returns a function without arguments, which does
the work once and returns how much it did. Here the first line of stdout says that it is ready; each line of stdin asks
for a run, and a line of JSON answers. Standard library only, since it runs in the rivals' environment too.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TextIO


def serve(side: Callable[[], Callable[[], float]], questions: TextIO, answers: TextIO) -> None:
    """Say ready, then answer every line with the amount of work, its seconds, and the memory above that of the
    imported libraries, in MiB, at its highest during the run.
    """
    resting = _memory("VmRSS")
    run = side()
    _answer(answers, ready=True)
    for _ in questions:
        _reset_peak()
        began = time.perf_counter()
        amount = run()
        seconds = time.perf_counter() - began
        _answer(answers, amount=amount, seconds=seconds, memory=_memory("VmHWM") - resting)


def _answer(answers: TextIO, **values: float) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _memory(name: str) -> float:
    """A line of Linux's account of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def _reset_peak() -> None:
    """Let VmHWM begin anew at the present size."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    # Libraries print to stdout; what they print goes to stderr, and the answers alone to what was stdout.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        module, options = import_module(sys.argv[1]), json.loads(sys.argv[2])
        serve(lambda: module.side(**options), sys.stdin, answers)


if __name__ == "__main__":
    main()
