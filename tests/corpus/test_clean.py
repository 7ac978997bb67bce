"""Each predicate against a count by hand."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.config import build
from nezha_ds.corpus.clean import (
    PASSAGE,
    CleanSettings,
    boilerplate_pattern,
    characters,
    chinese_share,
    control_share,
    first_failed,
    predicates,
    raw_predicates,
    repeated_lines,
    repeated_passages,
    without_boilerplate,
)
from nezha_ds.errors import ConfigError


@given(st.text())
def test_shares_equal_a_slow_count(text: str) -> None:
    visible = [character for character in text if not character.isspace()]
    assert characters(text) == len(visible)
    # The blocks are cut at their ends, where unassigned code points have no name: only named ones are compared.
    named = [unicodedata.name(character, "").startswith("CJK UNIFIED") for character in visible]
    assert chinese_share(text) >= sum(named) / max(1, len(visible)) - 1e-9 or any(ord(c) > 0x2CEAF for c in visible)


def test_only_empty_documents_go_by_default() -> None:
    chosen = predicates(CleanSettings())
    assert first_failed(" \n ", chosen) == "empty"
    assert first_failed("a", chosen) is None
    assert first_failed("重复重复\n" * 100, chosen) is None
    assert not raw_predicates(CleanSettings())
    assert boilerplate_pattern(CleanSettings()) is None


def test_the_first_failed_predicate_is_named() -> None:
    limits = {"min_chinese": 0.5, "max_repeated_lines": 0.3, "max_repeated_passages": 0.3}
    chosen = predicates(CleanSettings(min_characters=4, max_characters=40, **limits))
    assert first_failed("一二 三", chosen) == "too short"
    assert first_failed("一 二" * 21, chosen) == "too long"
    assert first_failed("一bcd", chosen) == "not Chinese"
    assert first_failed("一二c d", chosen) is None
    assert first_failed("一二三\n四五六\n一二三", chosen) == "repeated lines"
    assert first_failed("一二三四五六七八九十。一二三四五六七八九十！", chosen) == "repeated passages"
    raw = raw_predicates(CleanSettings(max_controls=0.1))
    assert first_failed("锟斤拷\ufffd", raw) == "control characters"
    assert first_failed("一二三\t\r\n\u3000", raw) is None


def test_shares_by_hand() -> None:
    assert chinese_share("") == control_share("") == repeated_lines("") == repeated_passages("") == 0
    assert chinese_share("𠀀a，１") == 0.25
    assert control_share("a\x00\x1b\ue000") == 0.75
    assert repeated_lines("甲甲\n乙乙乙\n甲甲\n甲甲\n丙") == 0.4
    assert repeated_passages("ab cdefghij") == 0
    assert repeated_passages("abcdefghij-ABCDE fghij-abcdefghij") == 10 / 32


@given(st.text(alphabet="ab\n ", max_size=80))
def test_repetition_equals_a_slow_count(text: str) -> None:
    joined = "".join(text.split())
    covered: set[int] = set()
    for place in range(len(joined) - PASSAGE + 1):
        if joined.find(joined[place : place + PASSAGE]) < place:
            covered.update(range(place, place + PASSAGE))
    assert repeated_passages(text) == pytest.approx(len(covered) / max(1, len(joined)))
    lines = text.split("\n")
    again = [line for place, line in enumerate(lines) if line in lines[:place]]
    assert repeated_lines(text) == pytest.approx(sum(map(characters, again)) / max(1, len(joined)))


@given(st.text(), st.lists(st.sampled_from("\x00\x1b\x7f\x9f\ue000\ufffd"), max_size=9))
def test_every_control_counts_once_wherever_it_stands(text: str, controls: list[str]) -> None:
    before = control_share(text) * len(text)
    assert control_share("".join(controls) + text) * (len(text) + len(controls)) == pytest.approx(
        before + len(controls)
    )


def test_lines_of_chinese_pages_are_removed_and_sentences_are_not() -> None:
    pattern = boilerplate_pattern(CleanSettings(boilerplate=("web", "广告.*")))
    assert pattern
    pages = (
        *("上一篇：新闻", "返回首页", "点击查看更多", "版权所有 某某公司", "京ICP备12345678号-1", "责任编辑：张三"),
        *("来源: 新华社", "分享到 微博", "广告位招租", "Copyright © 2020 Example", "阅读原文"),
    )
    text = ("本报北京电。", "他的作者身份版权所有人都知道，广告也提到过。", "编辑部在三楼。", "来源不明的消息不可信。")
    assert without_boilerplate("\n".join((*pages, *text)), pattern) == ("\n".join(text), len(pages))


@given(st.lists(st.text(alphabet="ab\n")))
def test_removal_leaves_the_other_lines_in_order(parts: list[str]) -> None:
    text, pattern = "\n".join(parts), re.compile("a+")
    kept, removed = without_boilerplate(text, pattern)
    assert without_boilerplate(kept, pattern)[0] == kept
    expected = [line for line in text.split("\n") if not line or line.strip("a")]
    assert kept == "\n".join(expected)
    assert removed == len(text.split("\n")) - len(expected)


def test_a_bad_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"here: boilerplate: '\(' is no regular expression \(missing \)"):
        build(CleanSettings, {"boilerplate": ["("]}, "here")
