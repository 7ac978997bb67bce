"""How much memory a preparation takes while a large input streams through it, and how fast it is.

    python -m tests.bench.memory --size 2e9                   plain text
    python -m tests.bench.memory --size 5e8 --kind jsonl.gz   one packed file: one task
    python -m tests.bench.memory --size 5e8 --kind parquet    one row group, as pyarrow writes a million rows

The input is the shipped corpus, over and over; it and the shards lie in a temporary folder and go with it. Of every
process two peaks are told: what the kernel counted as resident at its highest (RSS, with the pages that processes
share), and the largest sample of its proportional share (PSS).
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nezha_ds.corpus.inputs import find_files
from nezha_ds.corpus.sources import Piece, Reading, read
from tests.helpers import processes, ranks

_SAMPLE_SECONDS = 0.2
_BATCH = 1000


def documents(size: int) -> Iterator[str]:
    """Of the shipped corpus, so many bytes of them."""
    corpus = [
        document.text for path in find_files(["embedded"]) for document in read(Piece(path, 0, None, 0), Reading())
    ]
    for text in cycle(corpus):
        size -= len(text.encode())
        if size < 0:
            return
        yield text


def write_text(path: Path, size: int) -> None:
    """Blank lines between documents."""
    with path.open("w") as file:
        file.writelines(f"{text}\n\n" for text in documents(size))


def write_json(path: Path, size: int) -> None:
    """One object a line, packed."""
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents(size))


def write_parquet(path: Path, size: int) -> None:
    """All in one row group."""
    pq.write_table(pa.table({"text": list(documents(size))}), path)


WRITE = {"txt": write_text, "jsonl.gz": write_json, "parquet": write_parquet}


def measure(*arguments: object) -> tuple[dict[str, tuple[int, int]], float]:
    """Prepare; (peak RSS, peak PSS) in bytes of every process by name, and the seconds it took."""
    command = [sys.executable, "-m", "nezha_ds.cli", "prepare", *map(str, arguments)]
    started, names, peaks = time.monotonic(), dict[int, str](), dict[str, tuple[int, int]]()
    process = subprocess.Popen(command, env=ranks.environment(), start_new_session=True)
    while process.poll() is None:
        for pid in processes.session(process.pid):
            name = names.setdefault(pid, f"{_role(pid, process.pid)} {pid}")
            resident, share = peaks.get(name, (0, 0))
            resident = max(resident, _kilobytes(pid, "status", "VmHWM"))
            peaks[name] = resident, max(share, _kilobytes(pid, "smaps_rollup", "Pss"))
        time.sleep(_SAMPLE_SECONDS)
    assert process.returncode == 0
    return peaks, time.monotonic() - started


def _role(pid: int, leader: int) -> str:
    if pid == leader:
        return "parent"
    return "helper" if processes.parent_of(pid) == leader else "worker"


def _kilobytes(pid: int, file: str, field: str) -> int:
    """A field of /proc, in bytes; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=2e9, help="bytes of text (default: 2e9)")
    parser.add_argument("--kind", choices=tuple(WRITE), default="txt", help="of the input (default: txt)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--folder", help="where there is room for twice the size (default: the system's)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        inputs = folder / f"corpus.{given.kind}"
        WRITE[given.kind](inputs, int(given.size))
        peaks, seconds = measure(inputs, "--out", folder / "shards", "--workers", given.workers)
    for process, (resident, share) in sorted(peaks.items()):
        print(f"{process:<16} peak RSS {resident / 1e6:7,.0f} MB   peak PSS {share / 1e6:7,.0f} MB")
    print(f"{given.size / 1e6:,.0f} MB of text in {seconds:,.0f} s: {given.size / 1e6 / seconds:.1f} MB/s")


if __name__ == "__main__":
    main()
