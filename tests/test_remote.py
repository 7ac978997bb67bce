"""Files behind URIs: a real S3 store, and what a user reads when it refuses, lacks or hides them."""

import gzip
import io
import os
import re
import socket
import time
from pathlib import Path

import pytest

from nezha_ds import remote
from nezha_ds.errors import DataError
from nezha_ds.remote import list_files, open_file, read_bytes
from tests.helpers import s3

NAMES = ["a.txt", "b c.txt", "deep/语料 100%.txt", "deep/d#e?f+g.txt"]


@pytest.fixture(scope="module")
def corpus(store: s3.Store) -> str:
    for name in NAMES:
        store.put(f"texts/corpus/{name}", name.encode())
    store.put("texts/corpus2/other.txt", b"not below corpus")
    return "s3://texts/corpus"


def test_a_listing_gives_every_file_below_with_its_size_and_a_uri_that_opens(corpus: str) -> None:
    found = list_files(corpus)
    assert [read_bytes(file.uri).decode() for file in found] == NAMES
    assert [file.size for file in found] == [len(name.encode()) for name in NAMES]
    assert all(file.modified and abs(file.modified.timestamp() - time.time()) < 3600 for file in found)
    assert list_files(f"{corpus}/") == found
    assert list_files(found[0].uri) == found[:1]


def test_a_uri_may_be_written_with_spaces_chinese_and_per_cent_signs(corpus: str) -> None:
    assert read_bytes(f"{corpus}/deep/语料 100%.txt").decode() == NAMES[2]


def test_local_folders_are_file_systems_too(tmp_path: Path) -> None:
    (tmp_path / "语 料").mkdir()
    (tmp_path / "语 料" / "a.txt").write_text("春眠不觉晓")
    (found,) = list_files(f"file://{tmp_path}")
    assert read_bytes(found.uri).decode() == "春眠不觉晓"


def test_a_file_reads_and_seeks_as_a_local_one(store: s3.Store) -> None:
    data = os.urandom(3 * remote.BLOCK + 17)
    store.put("texts/large", data)
    local = io.BytesIO(data)
    with open_file("s3://texts/large") as file:
        for offset, whence, count in [(0, 0, 10), (-5, 2, 100), (remote.BLOCK - 3, 0, 7), (1000, 1, 2 * remote.BLOCK)]:
            assert file.seek(offset, whence) == local.seek(offset, whence)
            assert file.read(count) == local.read(count)
        file.seek(0)
        assert file.read() == data


def test_a_compressed_file_is_read_line_by_line(store: s3.Store) -> None:
    lines = [f"第{number}行\n" for number in range(1000)]
    store.put("texts/lines.gz", gzip.compress("".join(lines).encode()))
    with gzip.open(open_file("s3://texts/lines.gz"), "rt", encoding="utf-8") as file:
        assert list(file) == lines


def test_parameters_of_the_uri_name_another_store(
    corpus: str, store: s3.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    found = list_files(f"{corpus}?endpoint_override=127.0.0.1:{store.port}&scheme=http")
    assert [read_bytes(file.uri).decode() for file in found] == NAMES


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://texts/nothing", ("s3://texts/nothing is not there", "check the bucket and the path")),
        ("s3://no-such-bucket/corpus", ("s3://no-such-bucket/corpus is not there", "check the bucket")),
        ("s3://stranger:secret@texts/corpus", ("s3://texts/corpus may not be read", "AWS_ACCESS_KEY_ID")),
        ("s3://reader:wrong@texts/corpus", ("s3://texts/corpus may not be read", "AWS_SECRET_ACCESS_KEY")),
        ("https://host/corpus", ("https://host/corpus cannot be opened", "give a URI such as s3://")),
        ("s3://texts/corpus?regoin=x", ("s3://texts/corpus cannot be opened", "regoin")),
    ],
)
@pytest.mark.parametrize("use", [list_files, read_bytes])
def test_what_will_not_change_by_itself_is_told_at_once(
    store: s3.Store, use, uri: str, parts: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError) as raised:
        use(uri)
    assert "try 2 of" not in caplog.text
    assert all(part in str(raised.value) for part in parts)
    assert "secret@" not in str(raised.value) and "wrong@" not in str(raised.value)


def test_a_store_that_cannot_be_reached_is_told_after_a_few_tries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "TRIES", 3)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen, so every connection is refused
        uri = f"s3://texts/corpus?endpoint_override=127.0.0.1:{nobody.getsockname()[1]}&scheme=http"
        with pytest.raises(DataError, match=r"s3://texts/corpus cannot be read after 3 tries .*AWS_ENDPOINT_URL"):
            list_files(uri)
    assert re.findall(r"try \d of 3", caplog.text) == ["try 2 of 3", "try 3 of 3"]
