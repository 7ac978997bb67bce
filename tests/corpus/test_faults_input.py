"""Whatever is wrong with an input, through the command line: told with file and line, or passed over and counted."""

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nezha_ds import cli
from nezha_ds.corpus import sources
from nezha_ds.corpus.inputs import cut as cut_file
from tests.bench.memory import measure, write_text

ROWS = 5000
LINE = 200 << 20


@cache
def rows() -> bytes:
    """1.7 MB of JSON lines."""
    numbers = (f"{number}是{number**9}的九次方根。" * 9 for number in range(ROWS))
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in numbers).encode()


def zstandard(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def cut(name: str, pack: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path, data = folder / name, pack(rows())
        path.write_bytes(data[: len(data) * 9 // 10])
        return path

    return write


def holding(name: str, data: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def table(folder: Path) -> Path:
    path = folder / "a.parquet"
    pq.write_table(pa.table({"body": ["甲。"]}), path)
    return path


GOOD = '{"text": "好。"}\n'

INPUTS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "bad UTF-8": (
        holding("a.txt", "一\n\n二".encode() + b"\xb0\n\n" + "三".encode()),
        r", line 3: not UTF-8",
        "not UTF-8",
    ),
    "cut gzip": (cut("a.jsonl.gz", gzip.compress), r", line [\d,]+: damaged or cut short", "damaged file"),
    "cut zst": (cut("a.jsonl.zst", zstandard), r", line [\d,]+: damaged or cut short", "damaged file"),
    "cut xz": (cut("a.jsonl.xz", lzma.compress), r", line [\d,]+: damaged or cut short", "damaged file"),
    "cut bz2": (cut("a.jsonl.bz2", bz2.compress), r", line [\d,]+: damaged or cut short", "damaged file"),
    "half a line": (holding("a.jsonl", GOOD + '{"text": "半'), r", line 2: not JSON \(Unterminated", "not JSON"),
    "wrong field": (
        holding("a.jsonl", GOOD + '{"body": "x"}'),
        r", line 2: no field 'text'; it has body",
        "wrong field",
    ),
    "wrong column": (table, r" has no column 'text' but body: choose one with --field", "wrong field"),
    "empty file": (holding("a.txt", ""), r" is empty; leave it out of the inputs", "empty file"),
    "no table": (holding("a.arrow", "no"), r" is damaged or not Arrow", "damaged file"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_stop_and_skip(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, message, kind = INPUTS[name]
    path, good = write(tmp_path), holding("good.txt", "好文章。\n\n又一篇好文章。")(tmp_path)
    arguments = ["prepare", str(path), str(good), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err.strip()
    assert re.fullmatch(f"nezha-ds: {path}{message}.*", told), told
    assert not (tmp_path / "out" / "manifest.json").exists()

    assert cli.main([*arguments, "--on-error", "skip"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["faults"] == {kind: 1}
    assert re.fullmatch(f"{path}{message}.*", report["first_faults"][0])
    # The good file, and what of the bad one stands before the fault: of an archive, before the last whole megabyte.
    assert report["kept"] >= (ROWS // 3 if name.startswith("cut") else 2)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_line_of_200_megabytes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused, or passed over in little memory, and what stands behind it is read."""
    path = tmp_path / name
    with path.open("wb") as file:
        begin, end = (b'{"text": "', b'"}\n') if ".jsonl" in name else (b"", b"\n\n")
        file.write(begin + "前。".encode() + end + begin)
        for _ in range(LINE >> 20):
            file.write(b"xy z" * (1 << 18))
        file.write(end + begin + "后。".encode() + end)
    line = 2 if ".jsonl" in name else 3
    arguments = (path, "--out", tmp_path / "out", "--workers", 1)
    told = f"{path}, line {line}: no end of the document in 32 MB; "
    assert cli.main(["prepare", *map(str, arguments)]) == 2
    assert capsys.readouterr().err.startswith(f"nezha-ds: {told}")
    peaks, _ = measure(*arguments, "--on-error", "skip")
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["faults"] == {"too long": 1}
    assert report["first_faults"][0].startswith(told)
    assert report["kept"] == 2
    assert _highest(peaks, "parent") < 300 << 20


def test_memory_of_a_worker_does_not_grow_with_the_input(tmp_path: Path) -> None:
    """Tasks of 4 MB: what a worker needs is that of one task, however many there are."""
    write_text(tmp_path / "a.txt", 24_000_000)
    peaks, _ = measure(tmp_path / "a.txt", "--out", tmp_path / "out", "--workers", 2)
    assert _highest(peaks, "worker") < 200 << 20
    assert _highest(peaks, "parent") < 200 << 20


def test_a_long_text_in_a_table_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["甲。", "字" * (1 << 19), "乙" * (1 << 18), "丙。"]}), path)
    arguments = ["prepare", str(path), "--out", str(tmp_path / "out"), "--workers", "1", "--on-error", "skip"]
    assert cli.main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["first_faults"] == [f"{path}, row 2: a text of over 1 MB; divide it"]
    assert report["kept"] == 3


def test_a_row_group_is_read_page_by_page(tmp_path: Path) -> None:
    """Of 26 MB, as one million rows are by pyarrow's default: not more than a few pages of 1 MB are held."""
    path = tmp_path / "a.parquet"
    digits = iter(random_digits(26 << 20))
    pq.write_table(pa.table({"text": ["".join(part) for part in zip(*[digits] * 2048, strict=True)]}), path)
    (piece,) = cut_file(path, 1, "blank-line")
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in sources.read(piece, sources.Reading())]
    assert len(held) == 13 << 10
    assert max(held) < 8 << 20


def random_digits(count: int) -> str:
    """That pack to less than half."""
    return np.random.default_rng(1).bytes(count // 2).hex()


def _highest(peaks: dict[str, tuple[int, int]], role: str) -> int:
    """The highest resident size of a process in this role."""
    return max(resident for name, (resident, _) in peaks.items() if name.startswith(role))
