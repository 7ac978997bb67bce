"""What a GPU alone can tell: rows for docs/benchmarks.md, written one by one as they are found.

    tests/gpu/run.sh                                  tests, then measurements, then the table
    python -m tests.gpu --rows rows.jsonl             measurements alone; those in the file already are not made again
    python -m tests.gpu --device cpu --quick          a dry run on any machine: tiny shapes

Measuring happens in a process of its own, which is ended when a group takes too long and made anew when a side breaks
the device: one failure costs one row. `--seconds` is the time for everything; the most valuable rows come first.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import torch

from tests.gpu.cases import Group, Key, groups, quick_groups
from tests.gpu.rows import Row, append, measured, read

REPOSITORY = Path(__file__).parents[2]
LEAST_SECONDS = 15.0
"""Left over, below which no group is begun: a worker takes about ten to start."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a dry run")
    parser.add_argument("--rows", type=Path, default=REPOSITORY / "build" / "gpu" / "rows.jsonl")
    parser.add_argument("--seconds", type=float, default=420.0, help="for all groups together")
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--compiled", action="store_true", help="with --quick: through torch.compile")
    parser.add_argument("--tests", type=Path, help="what pytest --junit-xml wrote")
    parser.add_argument("--command", default="python -m tests.gpu", help="what the table says that was run")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --quick is a dry run")
    done = measured(read(chosen.rows))
    append(chosen.rows, environment_row(chosen.device, chosen.command))
    if chosen.tests:
        append(chosen.rows, row_of_tests(chosen.tests))
    planned = quick_groups(chosen.compiled) if chosen.quick else groups()
    for row in measure(planned, done, chosen.device, chosen.seconds, chosen.rows.with_suffix(".log")):
        append(chosen.rows, row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return 0


def environment_row(device: str, command: str) -> Row:
    """Device, driver and versions; no paths."""
    cuda = device == "cuda"
    packages = {}
    for name in ("torch", "triton", "deepspeed", "transformers"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "kind": "environment",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "device": torch.cuda.get_device_name() if cuda else device,
        "memory_mib": torch.cuda.get_device_properties(0).total_memory >> 20 if cuda else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **packages,
    }


def _driver() -> str | None:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def row_of_tests(path: Path) -> Row:
    """What pytest found; a run that was killed before it could say is one failure."""
    try:
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return {"kind": "tests", "passed": 0, "skipped": 0, "failed": 1, "failures": ["no report was written"]}
    failures = [case.get("name", "") for case in cases if {child.tag for child in case} & {"failure", "error"}]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failures) - skipped
    return {"kind": "tests", "passed": passed, "skipped": skipped, "failed": len(failures), "failures": failures}


def measure(planned: list[Group], done: set[Key], device: str, seconds: float, log: Path) -> Iterator[Row]:
    """Rows of all groups that there is time for; sides that are `done` are left out."""
    end = time.monotonic() + seconds
    worker: Worker | None = None
    try:
        for group in planned:
            waiting = [side for side in group.sides if group.key(side) not in done]
            while waiting and end - time.monotonic() > LEAST_SECONDS:
                if worker is None:
                    worker = Worker(device, log)
                limit = min(time.monotonic() + group.seconds, end)
                for row in worker.rows(_only(group, waiting), limit):
                    waiting.remove(row["side"])
                    yield row
                if not worker.sound:
                    worker.end()
                    worker = None
                else:
                    break
    finally:
        if worker is not None:
            worker.end()


def _only(group: Group, sides: list[str]) -> Group:
    return Group.from_json(group.to_json() | {"sides": sides})


class Worker:
    """A process of `worker.py`. `sound` is False once it ended, or had to be."""

    def __init__(self, device: str, log: Path) -> None:
        self.sound = True
        self._log = log
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.worker", device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=REPOSITORY,
                # A group of its own, because compilers that it starts must end with it.
                start_new_session=True,
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def rows(self, group: Group, limit: float) -> Iterator[Row]:
        """The rows of a group as they come, and for the side at which the process broke, a row that says so."""
        told: set[str] = set()
        at = group.sides[0]
        self._ask(group)
        while True:
            answer, fault = self._answer(limit)
            if fault:
                self.sound = False
                if at not in told:
                    yield group.row(at, error=fault)
                return
            if "done" in answer:
                return
            at = answer.get("at", at)
            if "row" in answer:
                told.add(answer["row"]["side"])
                yield answer["row"]

    def end(self) -> None:
        """Kill it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _ask(self, group: Group) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(group.to_json()) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_answer` tells that it ended

    def _answer(self, limit: float) -> tuple[Row, str]:
        """The next answer, or what went wrong."""
        try:
            line = self._answers.get(timeout=max(0.0, limit - time.monotonic()))
        except queue.Empty:
            return {}, "took too long"
        if line is None:
            return {}, f"the process ended with code {self._process.wait()}: {self._last_words()}"
        return json.loads(line), ""

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "nothing said"


if __name__ == "__main__":
    sys.exit(main())
