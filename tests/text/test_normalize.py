"""Normalisation changes what it says and nothing else."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.errors import DataError
from nezha_ds.text.normalize import normalize
from nezha_ds.text.tokenizer import Tokenizer
from tests.text.conftest import unicode_text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\ufeff第一回", "第一回"),
        ("一\r\n二\r三\u2028四\x0c五\x85六", "一\n二\n三\n四\n五\n六"),
        ("中\u200b国\x00人\u00ad民\u202e", "中国人民"),
        ("\u3000\u3000话说\u3000\u00a0 \t天下", "话说 天下"),
        ("一 \n \u3000二\n\n三 ", "一\n二\n\n三"),
        ("a \x00 b", "a b"),
        ("（１２３）：“ＡＢＣ”，①ﬁ", "（１２３）：“ＡＢＣ”，①ﬁ"),
    ],
)
def test_examples(raw: str, clean: str) -> None:
    assert normalize(raw) == clean


@given(unicode_text)
def test_idempotent(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@given(unicode_text)
def test_only_blanks_and_invisible_characters_go(text: str) -> None:
    def visible(string: str) -> str:
        return "".join(c for c in string if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf"))

    assert visible(normalize(text)) == visible(text)
    assert "  " not in normalize(text)


@given(text=unicode_text)
def test_nothing_that_bert_sees_changes_but_words_that_line_breaks_part(tokenizer: Tokenizer, text: str) -> None:
    # BERT drops VT, FF and NEL and so joins what they part; here they are line breaks. U+2028 is one for both.
    text = text.replace("\x0b", " ").replace("\x0c", " ").replace("\x85", " ")
    assert tokenizer.encode(normalize(text)).ids.tolist() == tokenizer.encode(text).ids.tolist()


def test_shipped_corpus_is_clean_already(novel: list[str], statutes: list[str]) -> None:
    for document in novel + statutes:
        assert normalize(document) == document.strip(" ")


@given(st.characters(categories=["Cs"]))
def test_surrogates_are_refused_with_their_place(surrogate: str) -> None:
    with pytest.raises(DataError, match=f"character 2 .*U\\+{ord(surrogate):04X}"):
        normalize(f"中国{surrogate}人")
