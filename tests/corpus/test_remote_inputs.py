"""From a real S3 store: the shards that the same files give from this disk, and one big object shared by many tasks."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nezha_ds.corpus import prepare as module
from nezha_ds.corpus.faults import Fault
from nezha_ds.corpus.inputs import cut, find_files
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.sources import Reading, read
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.remote import shown
from tests.helpers import proxy
from tests.helpers.s3 import Store

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "wikiextractor"
TASK_BYTES = 20_000
SHARDS = ("*.arrow", "report.json")


def corpus(folder: Path) -> Path:
    """A file of every kind that there is, most of them cut into several pieces."""
    texts = [f"{name}第{n}篇，" + "一些文字，" * 40 for name in "甲乙丙丁戊己" for n in range(60)]
    parts = [texts[60 * part : 60 * part + 60] for part in range(6)]
    folder.mkdir()
    (folder / "新闻 1.txt").write_text("\n\n".join(parts[0]))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in parts[1]))
    (folder / "c.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in parts[2]).encode())
    )
    (folder / "d.txt.zst").write_bytes(pa.compress("\n\n".join(parts[3]).encode(), codec="zstd", asbytes=True))
    pq.write_table(pa.table({"text": parts[4]}), folder / "e.parquet", row_group_size=20)
    with pa.ipc.new_file(str(folder / "f.arrow"), pa.schema({"text": pa.string()})) as writer:
        writer.write_table(pa.table({"text": parts[5]}), max_chunksize=20)
    shutil.copytree(GOLDEN / "doc" / "AA", folder / "wiki" / "AA")
    (folder / "picture.png").write_bytes(b"no text")
    return folder


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALLEST_TASK", TASK_BYTES)


def run(out: Path, *inputs: str, **settings: Any) -> None:
    prepare(PrepareSettings(inputs=inputs, out=out, workers=1, **settings), progress=False)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for pattern in SHARDS for path in sorted(folder.glob(pattern))}


SCRIPT = f"""
import sys
from nezha_ds import cli
from nezha_ds.corpus import prepare as module
if __name__ == "__main__":
    module._SMALLEST_TASK = {TASK_BYTES}
    sys.exit(cli.main(["prepare", *sys.argv[1:]]))
"""


def test_a_bucket_gives_the_shards_of_a_folder(tmp_path: Path, store: Store, small_tasks: None) -> None:
    uri = store.upload(corpus(tmp_path / "in"), "inputs/every kind")
    run(tmp_path / "local", str(tmp_path / "in"))
    run(tmp_path / "remote", uri)
    assert shards(tmp_path / "remote") == shards(tmp_path / "local")
    assert len(shards(tmp_path / "local")) > 10
    # Two processes, as a user starts them.
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", uri, "--workers", "2", "--out", tmp_path / "two"]
    environment = {**os.environ, **store.environment, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, env=environment, check=True, timeout=600, capture_output=True)
    assert shards(tmp_path / "two") == shards(tmp_path / "local")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_bytes())
    assert manifest["sources"] == [{"name": "text", "weight": 0, "inputs": ["s3://inputs/every kind"]}]


@pytest.fixture
def front(store: Store) -> Iterator[proxy.Proxy]:
    """What counts the requests: the store's own counts come late."""
    with proxy.run(store.port) as running:
        yield running


def test_one_object_is_cut_and_only_its_parts_are_fetched(tmp_path: Path, store: Store, front: proxy.Proxy) -> None:
    text = "\n\n".join(f"第{n}篇。" + "字" * 1000 for n in range(4000))
    store.put("inputs/big/all.txt", text.encode())
    (file,) = find_files([f"s3://inputs/big/all.txt{front.parameters}"])
    pieces = cut(file, 3 << 20, "blank-line")
    assert len(pieces) == 4
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    found = [document.text.strip() for piece in reversed(pieces) for document in read(piece, Reading())]
    assert sorted(found) == sorted(text.split("\n\n"))
    # Its beginning and its cuts, with two openings; then an opening and a request for each piece.
    assert len(pieces) <= len(front.gets("all.txt")) <= 2 + len(pieces) + 2 * len(pieces)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.txt", ["a.txt", "b/c/d.txt", "新闻/一 1.txt"]),
        ("*/c/*", ["b/c/d.txt", "b/c/e.jsonl"]),
        ("新*/*", ["新闻/一 1.txt"]),
        ("b/c/e.jsonl", ["b/c/e.jsonl"]),
        ("b", ["b/c/d.txt", "b/c/e.jsonl"]),
        ("b/", ["b/c/d.txt", "b/c/e.jsonl"]),
    ],
)
def test_uris_of_files_folders_and_globs(store: Store, pattern: str, expected: list[str]) -> None:
    for name in ("a.txt", "b/c/d.txt", "b/c/e.jsonl", "b/picture.png", "新闻/一 1.txt", ".hidden/a.txt"):
        store.put(f"inputs/names/x/{name}", "字".encode())
    parameters = "?region=us-east-1"
    for uri in (f"s3://inputs/names/x/{pattern}", f"s3://inputs/names/x/{pattern}{parameters}"):
        names = [
            shown(file.uri).removeprefix("s3://inputs/names/x/")
            for file in find_files([uri])
            if not isinstance(file, Path)
        ]
        assert names == expected


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "s3://inputs/refused/x/**/*.parquet",
            r"glob s3://inputs/refused/x/\*\*/\*\.parquet matches none of the 2 files below s3://inputs/refused/x",
        ),
        (
            "s3://inputs/refused/x/pictures",
            r"input folder s3://inputs/refused/x/pictures has no file that ends in \.txt",
        ),
        ("s3://inputs/refused/nowhere", r"s3://inputs/refused/nowhere "),
        ("s3://inp*/x.txt", r"glob s3://inp\*/x\.txt does not name its bucket"),
        ("s3://inputs/refused/x/empty.txt", r"s3://inputs/refused/x/empty\.txt is empty; leave it out"),
    ],
)
def test_what_cannot_be_read_is_refused(store: Store, uri: str, message: str) -> None:
    store.put("inputs/refused/x/pictures/a.png", b"no text")
    store.put("inputs/refused/x/empty.txt", b"")
    with pytest.raises(DataError, match=message):
        find_files([uri])


def test_files_that_are_not_divided_are_not_looked_into(store: Store, front: proxy.Proxy) -> None:
    for number in range(20):
        store.put(f"inputs/small/{number:02d}", "字".encode())
    files = find_files([f"s3://inputs/small{front.parameters}"])
    front.log.clear()
    assert [piece.path for file in files for piece in cut(file, 1 << 20, "blank-line")] == files
    assert front.log == []


def test_a_fault_survives_its_receipt(store: Store) -> None:
    store.put("inputs/receipt/a.txt", b"\xff")
    (file,) = find_files(["s3://inputs/receipt/a.txt"])
    for path in (file, Path("a.txt")):
        fault = Fault(kind="not UTF-8", path=path, place=0, reason="bad")
        assert Fault.model_validate_json(fault.model_dump_json()) == fault


def test_faults_name_uri_and_line(tmp_path: Path, store: Store) -> None:
    store.put("inputs/faults/a.jsonl", b'{"text": "a"}\n{"text": "b"\n{"text": "c"}\n')
    store.put("inputs/faults/b.txt.gz", gzip.compress(("字" * 1000).encode())[:-20])
    store.put("inputs/faults/c.parquet", b"no table")
    run(tmp_path / "out", "s3://inputs/faults", on_error="skip", heldout=0.0)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert [line.split("(")[0].strip() for line in report["first_faults"]] == [
        "s3://inputs/faults/c.parquet is damaged or not Parquet",
        "s3://inputs/faults/a.jsonl, line 2: not JSON",
        "s3://inputs/faults/b.txt.gz, line 1: damaged or cut short within the megabyte that begins here",
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.parquet"])
def test_a_store_that_fails_ends_the_work_even_if_faults_are_skipped(tmp_path: Path, store: Store, name: str) -> None:
    """A part of the input that is missing today is not broken input: to skip it would give other shards tomorrow."""
    pq.write_table(pa.table({"text": ["字"] * 10}), tmp_path / "a.parquet")
    data = {"a.txt": b"text", "a.txt.gz": gzip.compress(b"text"), "a.parquet": (tmp_path / "a.parquet").read_bytes()}
    store.put(f"inputs/gone/{name}", data[name])
    (file,) = find_files([f"s3://inputs/gone/{name}"])
    (piece,) = cut(file, 1 << 20, "line")
    store.remove(f"inputs/gone/{name}")
    with pytest.raises(DataError, match=rf"s3://inputs/gone/{name} is not there"):
        list(read(piece, Reading("line", on_fault=lambda fault: None)))


def test_a_changed_object_is_another_input_and_keys_are_not_written_down(tmp_path: Path, store: Store) -> None:
    store.put("inputs/changes/a.txt", "甲文。\n\n乙文。".encode())
    uri = (
        f"s3://reader:secret@inputs/changes/a.txt?endpoint_override=127.0.0.1:{store.port}&scheme=http&region=us-east-1"
    )
    run(tmp_path / "out", uri)
    run(tmp_path / "out", "s3://inputs/changes/a.txt")
    assert not any(b"reader:" in path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file())
    store.put("inputs/changes/a.txt", "甲文。\n\n丙文也是。".encode())
    with pytest.raises(ConfigError, match=r"different: files\)"):
        run(tmp_path / "out", "s3://inputs/changes/a.txt")
