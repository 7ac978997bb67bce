"""Whatever the packing, the cut and the block size, the same documents; and every fault by file and line."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nezha_ds.corpus import sources
from nezha_ds.corpus.faults import Fault, tell
from nezha_ds.corpus.inputs import cut
from nezha_ds.corpus.sources import Piece, Reading, Separation, read
from nezha_ds.errors import DataError

BLANK = " \t\r\u3000"


def texts(path: Path, size: int = 1 << 30, **reading: str) -> list[str]:
    return [
        document.text
        for piece in cut(path, size, reading.get("separation", "blank-line"))
        for document in read(piece, Reading(**reading))
    ]


def slow_documents(text: str) -> list[str]:
    """Line by line: a line of blanks ends a document."""
    documents, lines = [], []
    for line in [*text.split("\n"), ""]:
        if line.strip(BLANK):
            lines.append(line)
        elif lines:
            documents.append("\n".join(lines))
            lines = []
    return documents


@given(
    text=st.text(alphabet=st.sampled_from("中文a \n\n\n\r\t\u3000"), max_size=80),
    size=st.integers(1, 60),
    block=st.integers(1, 9),
)
def test_cuts_and_blocks_change_no_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int, block: int
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    monkeypatch.setattr("nezha_ds.corpus.inputs.BLOCK_BYTES", block)
    path = tmp_path / "corpus.txt"
    path.write_bytes(text.encode())
    found = [document.strip(BLANK + "\n") for document in texts(path, size)]
    assert [document for document in found if document] == [document.strip(BLANK) for document in slow_documents(text)]


@pytest.mark.parametrize("size", [1, 10, 1000])
@pytest.mark.parametrize(("separation", "expected"), [("line", ["甲", "乙", "丙"]), ("file", ["甲\n乙\n\n丙"])])
def test_lines_or_files_as_documents(tmp_path: Path, separation: Separation, expected: list[str], size: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("甲\n乙\n\n丙\n")
    assert [document.strip() for document in texts(path, size, separation=separation)] == expected


def test_pieces_are_about_equal_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"第{number}篇，一些文字。\n\n" for number in range(1000)))
    pieces = cut(path, 4000, "blank-line")
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (0, path.stat().st_size)
    assert max(piece.size for piece in pieces) < 1.1 * min(piece.size for piece in pieces) < 4400


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_hold_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix]("甲\n\n乙".encode()))
    assert texts(path) == ["甲", "乙"]


@pytest.mark.parametrize("suffix", PACK)
def test_a_cut_archive_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    rows = "".join(json.dumps({"text": f"{number} {number**9}"}) + "\n" for number in range(3000))
    path.write_bytes(PACK[suffix](rows.encode())[:-50])
    with pytest.raises(DataError, match=rf"a\.jsonl{suffix}, line 1: damaged or cut short .* fetch"):
        texts(path)


def write_table(path: Path, columns: dict[str, list[str | None]]) -> None:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
        return
    make = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_tables(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_table(path, {"content": ["甲", "乙", None, "丁"], "url": ["1", "2", "3", "4"]})
    faults: list[Fault] = []
    reading = Reading(field="content", on_fault=faults.append)
    pieces = cut(path, 1, "blank-line")
    assert len(pieces) == (2 if name == "a.parquet" else 1)
    assert [document.text for piece in pieces for document in read(piece, reading)] == ["甲", "乙", "丁"]
    assert tell(faults) == [f"{path}, row 3: column 'content' is None, not a string"]
    with pytest.raises(DataError, match=rf"{name} has no column 'text' but content, url: choose one with --field"):
        texts(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_tables_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no table at all")
    with pytest.raises(DataError, match=rf"{name} is damaged or not"):
        texts(path)


GOOD = '{"text": "好"}\n'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", "一\n\n二\n".encode() + b"\xb0\xa1\n", r"a\.txt, line 4: not UTF-8 \(byte 0xb0\); convert it"),
        ("a.txt.gz", gzip.compress("一\n\n".encode() + b"\xff"), r"a\.txt\.gz, line 3: not UTF-8 \(byte 0xff\)"),
        ("a.jsonl", (GOOD + '{"text": "半').encode(), r"a\.jsonl, line 2: not JSON \(Unterminated string"),
        ("a.jsonl", (GOOD + GOOD + '{"body": "x", "id": 1}').encode(), r"line 3: no field 'text'; it has body, id:"),
        ("a.jsonl", b'{"text": 3}', r"line 1: field 'text' is 3, not a string"),
        ("a.jsonl", b'["text"]', r"line 1: a JSON list instead of an object"),
        ("a.jsonl", GOOD.encode() + b"\xff\n", r"a\.jsonl, line 2: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, r"line 1: maximum recursion depth"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        texts(path)


def test_a_fault_in_a_later_piece_has_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD * 99 + "{\n" + GOOD)
    assert len(cut(path, 100, "blank-line")) > 5
    with pytest.raises(DataError, match="line 100: not JSON"):
        texts(path, size=100)


def test_a_handler_that_returns_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + "{\n\n{}\n" + GOOD)
    faults: list[Fault] = []
    found = list(read(Piece(path, 0, None, 0), Reading(on_fault=faults.append)))
    assert [document.text for document in found] == ["好", "好"]
    assert [text.split(":")[0] for text in tell(faults)] == [f"{path}, line 2", f"{path}, line 4"]


def test_a_document_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / "a.txt"
    path.write_text("短\n\n" + "一行一篇\n" * 300_000)
    with pytest.raises(DataError, match=r"a\.txt, line 3: no end of the document .* --separation line"):
        texts(path)


@given(
    text=st.text(alphabet=st.sampled_from("长a \n\n\u3000"), max_size=120),
    block=st.integers(1, 9),
    separation=st.sampled_from(["blank-line", "line"]),
)
@example(text="aaaaaaa\n\u3000\u3000\u3000\u3000\na", block=1, separation="blank-line")
@example(text="a\n\u3000\u3000\u3000\u3000\u3000\u3000\na", block=1, separation="blank-line")
def test_an_endless_document_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int, separation: Separation
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 1000)
    whole = [document.strip() for document in texts(path, separation=separation) if document.strip()]
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 20)
    faults: list[Fault] = []
    reading = Reading(separation, on_fault=faults.append)
    found = [document.text.strip() for document in read(Piece(path, 0, None, 0), reading)]
    kept = [document for document in found if document]
    # What is lost is long, what is short is kept, and each loss is a fault; blanks at the edges count as length.
    remaining = iter(whole)
    assert all(any(document == other for other in remaining) for document in kept)
    assert len(whole) - len(kept) <= len(faults) <= len(text.encode()) / 20
    assert {fault.kind for fault in faults} <= {"too long"}


@pytest.mark.parametrize("suffix", PACK)
def test_what_stands_before_the_cut_of_an_archive_is_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    rows = [f"{number} {number**9}" * 30 for number in range(5000)]
    data = PACK[suffix]("".join(json.dumps({"text": row}) + "\n" for row in rows).encode())
    path.write_bytes(data[: len(data) * 19 // 20])
    faults: list[Fault] = []
    found = [document.text for document in read(Piece(path, 0, None, 0), Reading(on_fault=faults.append))]
    assert [fault.kind for fault in faults] == ["damaged file"]  # and not half a line of JSON besides
    assert found == rows[: len(found)]


def test_lines_of_many_faults_are_counted_in_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"1\n22\n333\n4")
    opened: list[Path] = []
    monkeypatch.setattr("nezha_ds.corpus.faults.open_text", lambda path: opened.append(path) or path.open("rb"))
    faults = [Fault(kind="not UTF-8", path=path, place=place, reason="bad") for place in (9, 0, 2, 4)]
    assert tell(faults) == [f"{path}, line {line}: bad" for line in (4, 1, 2, 2)]
    assert opened == [path]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert texts(path) == ["好"]
