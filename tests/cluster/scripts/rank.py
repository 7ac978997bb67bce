"""Stands for a rank where only its launcher is the point: tells what it was given, and ends as it is told.

    rank.py NOTES [CODE …]

Into the folder NOTES it writes a line with its place and its environment; then it ends as the word for this attempt
says: a number is its exit code, `killed` a kill -9 of itself, `waits` stays until a TERM or USR1 comes, and leaves with
75 then, as a run would. Without a word for the attempt it ends with 0.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from nezha_ds.world import find_world

ASKED = (signal.SIGTERM, signal.SIGUSR1)


def main(notes: Path, words: list[str]) -> int:
    """The exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)
    world, attempt = find_world(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    extensions = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    told = {
        **asdict(world),
        "arguments": sys.argv,
        "environment": dict(os.environ),
        "extensions": extensions.stat().st_mode & 0o777 if extensions.exists() else None,
    }
    print(f"rank {world.rank} in attempt {attempt}")
    note = notes / f"rank-{world.rank}-attempt-{attempt}.json"
    note.with_suffix(".tmp").write_text(json.dumps(told))
    note.with_suffix(".tmp").rename(note)
    word = dict(enumerate(words)).get(attempt, "0")
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "waits":
        signal.sigwait(ASKED)
        return 75
    return int(word)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
