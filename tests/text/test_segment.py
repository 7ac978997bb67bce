"""Words add up to the text, and the fast segmenter decides as jieba does."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from nezha_ds.errors import ConfigError, DataError
from nezha_ds.text.segment import Segmenter, make_segmenter, read_user_dictionary
from tests.text.conftest import unicode_text

Flags = NDArray[np.bool_]


@pytest.fixture(scope="module")
def segmenters(rjieba: Segmenter, jieba: Segmenter) -> dict[str, Segmenter]:
    others = {name: make_segmenter(name) for name in ("character", "pretokenized")}
    return {"rjieba": rjieba, "jieba": jieba, **others}


def words(segmenter: Segmenter, text: str) -> list[str]:
    starts = segmenter.word_starts(text).tolist()
    return [text[begin:end] for begin, end in pairwise([*starts, len(text)])]


def test_known_sentence(rjieba: Segmenter, jieba: Segmenter) -> None:
    expected = ["我", "来到", "北京", "清华大学"]
    assert words(rjieba, "".join(expected)) == words(jieba, "".join(expected)) == expected
    assert words(make_segmenter("character"), "北京 ok") == ["北", "京", " ", "o", "k"]


@pytest.mark.parametrize("name", ["rjieba", "jieba", "character", "pretokenized"])
@given(text=unicode_text)
def test_pieces_add_up_to_the_text(segmenters: dict[str, Segmenter], name: str, text: str) -> None:
    segmenter = segmenters[name]
    assert "".join(segmenter.cut(text)) == text
    assert words(segmenter, text) == segmenter.cut(text)


def decisions(segmenter: Segmenter, document: str) -> Flags:
    """Whether a word begins, in every gap between two Chinese characters."""
    chinese = np.array(["\u4e00" <= character <= "\u9fa5" for character in document])
    begins = np.zeros(len(document), dtype=np.bool_)
    begins[segmenter.word_starts(document)] = True
    return begins[1:][chinese[1:] & chinese[:-1]]


def test_same_decision_in_every_gap_between_chinese_characters(
    rjieba: Segmenter, jieba: Segmenter, novel: list[str]
) -> None:
    pairs = [(decisions(rjieba, document), decisions(jieba, document)) for document in novel]
    assert sum(len(one) for one, _ in pairs) > 350_000
    assert sum(int((one != other).sum()) for one, other in pairs) == 0


def test_a_user_dictionary_changes_both_alike(
    tmp_path: Path, rjieba: Segmenter, jieba: Segmenter, novel: list[str]
) -> None:
    # Pieces of the novel as words: with a count that was just enough, small, large; some are in the dictionary already.
    text = "".join(novel[:20])
    pieces = [text[place : place + 2 + place % 4] for place in range(0, len(text) - 8, 211)]
    chosen = dict.fromkeys(piece for piece in pieces if all("\u4e00" <= character <= "\u9fa5" for character in piece))
    endings = ("", " 3", " 20000 nz", " n")
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{word}{endings[place % 4]}\r\n" for place, word in enumerate(chosen)))
    with_words = {name: make_segmenter(name, path) for name in ("rjieba", "jieba")}
    changed = gaps = 0
    for document in novel[:20]:
        found = decisions(with_words["rjieba"], document)
        assert np.array_equal(found, decisions(with_words["jieba"], document))
        changed, gaps = changed + int((found != decisions(rjieba, document)).sum()), gaps + len(found)
    assert len(chosen) > 150
    assert 100 < changed < gaps / 10
    # The dictionary is this segmenter's own, and part of its identity.
    assert np.array_equal(decisions(rjieba, novel[0]), decisions(jieba, novel[0]))
    hashes = {one.dictionary_sha256 for one in (rjieba, jieba, *with_words.values())}
    assert len(hashes) == 4


def test_user_words_are_found_and_hashed_by_content(tmp_path: Path) -> None:
    one, other = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_bytes("\ufeff石墨烯芯片 5\n\n石墨烯芯片\n".encode())
    other.write_text("石墨烯芯片")
    assert read_user_dictionary(one) == read_user_dictionary(other) == (("石墨烯芯片", None),)
    assert words(make_segmenter("rjieba"), "用石墨烯芯片") != ["用", "石墨烯芯片"]
    segmenter = make_segmenter("rjieba", one)
    assert words(segmenter, "用石墨烯芯片") == ["用", "石墨烯芯片"]
    assert segmenter.dictionary_sha256 == make_segmenter("rjieba", other).dictionary_sha256


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("词 5\n两 个 词".encode(), r"words\.txt, line 2: '两 个 词' is not `word \[count\] \[part of speech\]`"),
        ("词 0".encode(), "line 1: '词 0' is not .* with a count of 1 to 1,000,000,000"),
        ("词 99999999999999999999".encode(), "line 1: '词 9999"),
        ("词".encode("gb18030"), r"words\.txt is not UTF-8 \(byte 0\)"),
        (None, r"words\.txt cannot be read \(No such file"),
    ],
)
def test_what_is_no_dictionary_is_refused(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "words.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        make_segmenter("rjieba", path)


def test_only_segmenters_with_a_dictionary_take_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'pretokenized' takes no user dictionary \(.*\); use rjieba or jieba"):
        make_segmenter("pretokenized", tmp_path / "words.txt")


def test_words_between_spaces_are_the_words() -> None:
    segmenter = make_segmenter("pretokenized")
    assert words(segmenter, " 北京大学 的\n学生 ok 。") == [" ", "北京大学 ", "的\n", "学生 ", "ok ", "。"]
    assert words(segmenter, "") == []


def test_provenance_tells_segmenters_apart(rjieba: Segmenter, jieba: Segmenter) -> None:
    assert (jieba.name, jieba.version) == ("jieba", "0.42.1")
    assert jieba.dictionary_sha256 == "7197c3211ddd98962b036cdf40324d1ea2bfaa12bd028e68faa70111a88e12a8"
    assert rjieba.name == "rjieba"
    assert len(rjieba.dictionary_sha256) == 64
    assert rjieba.dictionary_sha256 != jieba.dictionary_sha256


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'rjeiba'; did you mean 'rjieba'\?"):
        make_segmenter("rjeiba")


def test_jieba_says_nothing_and_leaves_no_cache(tmp_path: Path) -> None:
    code = "from nezha_ds.text.segment import make_segmenter as m; print(len(m('jieba').word_starts('我来到北京')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("3\n", "")
    assert list(tmp_path.iterdir()) == []
