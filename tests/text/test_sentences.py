"""Sentences end where readers of Chinese say they do, and none loses a character."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.text.sentences import sentence_starts
from tests.text.conftest import unicode_text


def cut(text: str) -> list[str]:
    starts = sentence_starts(text).tolist()
    return [text[begin:end] for begin, end in pairwise([*starts, len(text)])]


@pytest.mark.parametrize(
    "sentences",
    [
        ["天下大势，分久必合，合久必分。", "周末七国分争，并入于秦。"],
        ["操曰：“夫英雄者，胸怀大志。”", "玄德曰：“谁能当之？”"],
        ["他说：“走吧！”", "（众人大笑。）", "【完。】", "《论语》"],
        ["什么？！", "真的……", "是的！！！", "好。"],
        ["一、总则；二、分则；三、附则。"],
        ["甲说：‘他说：“好。”’", "乙走了。"],
        ["圆周率是3.14，版本2.0.1。", "完"],
        ["He lives in the U.S. with J. Smith. ", "It costs 3.50 dollars. ", "Really? ", "Yes!"],
        ["1. Purpose and scope. ", "Rules."],
        ['He said "stop." ', "Then he left."],
        ["见 http://a.cn/b?c=1 与 x!=2 和 a.b。", "完"],
        ["“走！”，他说。"],
        ["Wait... ", "完"],
        ["第一条\n", "第二条\n\n  ", "第三条"],
        ["!?\n", "。"],
        ["半角｡", "句号"],
    ],
)
def test_examples(sentences: list[str]) -> None:
    assert cut("".join(sentences)) == sentences


def test_straight_quotes_close_or_open_by_their_number_on_the_line() -> None:
    assert cut('甲说："走。"乙说："好。"') == ['甲说："走。"', '乙说："好。"']
    assert cut('甲走了。"好吗？"她问。"好。"') == ["甲走了。", '"好吗？"', "她问。", '"好。"']
    assert cut('他说："走。""好。"') == ['他说："走。"', '"好。"']
    # No opening quote stands before white space.
    assert cut('他说："走了？""\n乙"') == ['他说："走了？""\n', '乙"']
    assert cut('走了？"\n乙。"') == ['走了？"\n', '乙。"']
    # An unpaired quote harms its own line only.
    assert cut('甲："走。\n乙走了。"好。"') == ['甲："走。\n', "乙走了。", '"好。"']


def test_blank_text_has_no_sentence() -> None:
    assert cut("") == cut(" \n\u3000\t ") == []
    assert cut(" \n 好 \n") == ["好 \n"]


@settings(max_examples=1000)
@given(st.one_of(unicode_text, st.text("。！？.!?…\"'”’）]，,:aA1一 \n", max_size=40)))
def test_every_character_that_is_not_blank_lies_in_one_sentence(text: str) -> None:
    starts = sentence_starts(text).tolist()
    assert starts == sorted(set(starts))
    assert not text[: starts[0] if starts else None].strip()
    for sentence in cut(text):
        assert not sentence[0].isspace()
        # Only what follows the sentence's own end may be blank, and a line break ends it.
        assert "\n" not in sentence.rstrip()


def test_no_text_takes_quadratic_time() -> None:
    """Seconds of a core: a fourteenth of it now; squared, counting bytes alone would take more."""
    many = 200_000
    began = time.thread_time()
    for text in ("." * many + "1", "！" * many + "，", '好。"' * many, "”" * many, " " * many, "。\n" * many):
        sentence_starts(text)
    assert time.thread_time() - began < 5


def test_novel(novel: list[str]) -> None:
    sentences = [sentence for document in novel for sentence in cut(document)]
    assert 20_000 < len(sentences) < 40_000
    # A closing quote begins a sentence only where the text itself sets it apart.
    assert sum(sentence[0] in "”’」』）】》" for sentence in sentences) / len(sentences) < 1e-3
