"""Inputs become files in one order, and what cannot be read is refused by name."""

from pathlib import Path

import pytest

from nezha_ds.corpus.inputs import EMBEDDED, find_files, stamp
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
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
