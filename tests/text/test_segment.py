"""Words add up to the text, and the fast segmenter decides as jieba does."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from nezha_ds.errors import ConfigError
from nezha_ds.text.segment import Segmenter, make_segmenter
from tests.text.conftest import unicode_text


@pytest.fixture(scope="module")
def segmenters(rjieba: Segmenter, jieba: Segmenter) -> dict[str, Segmenter]:
    return {"rjieba": rjieba, "jieba": jieba, "character": make_segmenter("character")}


def words(segmenter: Segmenter, text: str) -> list[str]:
    starts = segmenter.word_starts(text).tolist()
    return [text[begin:end] for begin, end in pairwise([*starts, len(text)])]


def test_known_sentence(rjieba: Segmenter, jieba: Segmenter) -> None:
    expected = ["我", "来到", "北京", "清华大学"]
    assert words(rjieba, "".join(expected)) == words(jieba, "".join(expected)) == expected
    assert words(make_segmenter("character"), "北京 ok") == ["北", "京", " ", "o", "k"]


@pytest.mark.parametrize("name", ["rjieba", "jieba", "character"])
@given(text=unicode_text)
def test_pieces_add_up_to_the_text(segmenters: dict[str, Segmenter], name: str, text: str) -> None:
    segmenter = segmenters[name]
    assert "".join(segmenter.cut(text)) == text
    assert words(segmenter, text) == segmenter.cut(text)


def test_same_decision_in_every_gap_between_chinese_characters(
    rjieba: Segmenter, jieba: Segmenter, novel: list[str]
) -> None:
    gaps = differing = 0
    for document in novel:
        chinese = np.array(["\u4e00" <= character <= "\u9fa5" for character in document])
        between = chinese[1:] & chinese[:-1]
        flags = []
        for segmenter in (rjieba, jieba):
            begins = np.zeros(len(document), dtype=np.bool_)
            begins[segmenter.word_starts(document)] = True
            flags.append(begins[1:][between])
        gaps += len(flags[0])
        differing += int((flags[0] != flags[1]).sum())
    assert gaps > 350_000
    assert differing == 0


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
