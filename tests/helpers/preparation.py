"""`nezha-ds prepare` as a user starts it, but in small tasks, so that a small text has many.

    python -m tests.helpers.preparation INPUT … --out FOLDER

The environment may say how large a task is (TASK_BYTES) and from which size on a file cannot be written (FILE_BYTES),
which stands for a full disk where none can be mounted: the system answers a write with EFBIG instead of ENOSPC. It may
also say how many tasks are open (OPEN_TASKS): the others wait, for ever or for a file (GATE), so that a test finds the
preparation under way however late it looks.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nezha_ds import cli
from nezha_ds.corpus import prepare
from nezha_ds.corpus.encode import Receipt, Work, encode
from nezha_ds.corpus.executor import count_bytes
from nezha_ds.corpus.inputs import find_files
from nezha_ds.corpus.sources import Piece, Reading, read
from tests.helpers import ranks

TASK_BYTES = 200_000
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3")
"""Rank 0 hands out work, two ranks do it."""


def command(*arguments: object, launcher: Sequence[str] = ()) -> list[str]:
    """One preparation."""
    return [*launcher, sys.executable, "-m", "tests.helpers.preparation", *map(str, arguments)]


def start(*arguments: object, launcher: Sequence[str] = (), **variables: object) -> "subprocess.Popen[str]":
    """One preparation, begun, in a process group of its own."""
    env = ranks.environment() | {name: str(value) for name, value in variables.items()}
    return subprocess.Popen(
        command(*arguments, launcher=launcher),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 600) -> tuple[int, str]:
    """Exit code and stderr of one that must end in time."""
    try:
        _, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, told


def run(*arguments: object, launcher: Sequence[str] = (), **variables: object) -> tuple[int, str]:
    """One preparation to its end: exit code and stderr."""
    return finish(start(*arguments, launcher=launcher, **variables))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a prepared folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def finished(folder: Path) -> dict[Path, int]:
    """The shards that receipts vouch for, and when each was written."""
    receipts = [json.loads(path.read_bytes()) for path in folder.glob("receipts/*.json")]
    shards = [folder / shard["name"] for receipt in receipts for shard in receipt["shards"]]
    return {path: path.stat().st_mtime_ns for path in shards}


def statutes(path: Path, documents: int = 600) -> Path:
    """Some of the shipped statutes as plain text, 3.4 kB each."""
    piece = Piece(find_files(["embedded"])[1], 0, None, 0)
    texts = [document.text for document, _ in zip(read(piece, Reading()), range(documents), strict=False)]
    path.write_text("\n\n".join(texts))
    return path


def encode_if_open(work: Work) -> Receipt:
    """What `encode` returns, for one of the first OPEN_TASKS tasks at once; for another when the gate is there."""
    gate = Path(os.environ.get("GATE", "/nowhere"))
    while work.number >= int(os.environ["OPEN_TASKS"]) and not gate.exists():
        count_bytes(0)  # which ends a task that is called off
        time.sleep(0.005)
    return encode(work)


if __name__ == "__main__":
    # Whoever runs the tests in the background has them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "OPEN_TASKS" in os.environ:
        prepare.encode = encode_if_open
    prepare._SMALLEST_TASK = int(os.environ.get("TASK_BYTES", TASK_BYTES))
    if limit := os.environ.get("FILE_BYTES"):
        if "mpi" in sys.argv:
            importlib.import_module("mpi4py.MPI")  # starts MPI, whose own files are larger
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    sys.exit(cli.main(["prepare", *sys.argv[1:]]))
