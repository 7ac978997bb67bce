"""Inputs become files in one order, and what cannot be read is refused by name."""

from pathlib import Path

import pytest

from nezha_ds.corpus.globs import matches
from nezha_ds.corpus.inputs import EMBEDDED, find_files, stamp
from nezha_ds.corpus.location import name_of, open_bytes, size_of
from nezha_ds.errors import DataError


def write(path: Path, text: str = "字") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_folder_gives_its_text_files_by_path(tmp_path: Path) -> None:
    kept = [write(tmp_path / name) for name in ("AA/wiki_00", "AA/wiki_01.bz2", "b.txt", "c.JSONL.gz", "d.parquet")]
    for name in (".hidden.txt", ".git/a.txt", "e.pdf", "f.tar.gz"):
        write(tmp_path / name)
    assert find_files([str(tmp_path)]) == kept
    assert find_files([str(kept[2]), str(kept[0])]) == [kept[2], kept[0]]


def test_the_shipped_texts_are_the_same_wherever_they_are_installed() -> None:
    assert [stamp(path)[0] for path in find_files([EMBEDDED])] == ["sanguo.txt.xz", "statutes.txt.xz"]
    assert {stamp(path)[2] for path in find_files([EMBEDDED])} == {0}


TREE = (
    "a.txt",
    "b/a.txt",
    "b/c/a.txt",
    "b/c/d.jsonl.gz",
    "b1/a.txt",
    ".h/a.txt",
    "b/.a.txt",
    "b/[1].txt",
    "新闻/一.txt",
)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("**/*.txt", ["a.txt", "b/[1].txt", "b/a.txt", "b/c/a.txt", "b1/a.txt", "新闻/一.txt"]),
        ("**/a.*", ["a.txt", "b/a.txt", "b/c/a.txt", "b1/a.txt"]),
        ("b/**", ["b/[1].txt", "b/a.txt", "b/c/a.txt", "b/c/d.jsonl.gz"]),
        ("**/c/**/*.gz", ["b/c/d.jsonl.gz"]),
        ("b[0-9]/*", ["b1/a.txt"]),
        ("b/[[]1].txt", ["b/[1].txt"]),
        ("[!a]*/*.txt", ["b/[1].txt", "b/a.txt", "b1/a.txt", "新闻/一.txt"]),
        (".h/*", [".h/a.txt"]),
        ("b/.*", ["b/.a.txt"]),
        ("新*/*", ["新闻/一.txt"]),
        ("b/*.txt", ["b/[1].txt", "b/a.txt"]),
    ],
)
def test_a_glob_gives_its_files_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    for name in TREE:
        write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_files([pattern])] == expected
    # What is behind a URI is matched by ourselves, in the same way.
    assert sorted(name for name in TREE if matches(name.split("/"), pattern.split("/"))) == sorted(expected)


def test_any_file_system_that_arrow_opens(tmp_path: Path) -> None:
    for name in TREE:
        write(tmp_path / name, name)
    for pattern in ("", "/b", "/b/c/a.txt", "/**/*.txt"):
        local = find_files([f"{tmp_path}{pattern}"])
        behind_uri = find_files([f"file://{tmp_path}{pattern}"])
        assert [name_of(file) for file in behind_uri] == [f"file://{file}" for file in local]
        assert [size_of(file) for file in behind_uri] == [size_of(file) for file in local]
        assert [open_bytes(file).read() for file in behind_uri] == [open_bytes(file).read() for file in local]


def test_a_file_with_the_name_of_a_glob_is_that_file(tmp_path: Path) -> None:
    for name in ("a[1].txt", "a1.txt"):
        write(tmp_path / name)
    assert find_files([str(tmp_path / "a[1].txt")]) == [tmp_path / "a[1].txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("*.jsonl", r"glob .*\*\.jsonl matches nothing in .*; check it by `ls .*jsonl`"),
        ("pic*", r"glob .*pic\* matches folders only, such as .*pictures; write .*pic\*/\*\*$"),
        ("nowhere", "input .*nowhere does not exist; name a file, a folder, or `embedded`"),
        ("empty.txt", r"empty\.txt is empty; leave it out"),
        ("pictures", r"pictures has no file that ends in \.txt, \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "pictures" / "a.png")
    with pytest.raises(DataError, match=message):
        find_files([str(tmp_path / name)])
