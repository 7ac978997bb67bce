"""Boundaries move from characters to tokens by the rule, and by nothing else."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.errors import DataError
from nezha_ds.text import document as document_module
from nezha_ds.text.document import DocumentEncoder, EncodedDocument
from nezha_ds.text.segment import Segmenter, make_segmenter
from nezha_ds.text.sentences import sentence_starts
from nezha_ds.text.tokenizer import Encoding, Tokenizer
from tests.text.conftest import unicode_text


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer, rjieba: Segmenter) -> DocumentEncoder:
    return DocumentEncoder(tokenizer, rjieba)


def words(encoder: DocumentEncoder, document: EncodedDocument) -> list[str]:
    ids = np.split(document.ids, np.flatnonzero(document.word_starts)[1:])
    return [encoder.tokenizer.decode(word.tolist()) for word in ids]


def moved(encoding: Encoding, boundaries: list[int]) -> set[int]:
    """The rule, one boundary at a time."""
    tokens = {0} if len(encoding.ids) else set()
    for boundary in boundaries:
        token = next((t for t, start in enumerate(encoding.starts.tolist()) if start >= boundary), None)
        if token is not None and not encoding.continues[token]:
            tokens.add(token)
    return tokens


@settings(max_examples=300)
@given(text=unicode_text)
def test_boundaries_follow_the_rule(encoder: DocumentEncoder, text: str) -> None:
    document = encoder.encode(text)
    encoding = encoder.tokenizer.encode(text)
    sentences = moved(encoding, sentence_starts(text).tolist())
    assert document.ids.tolist() == encoding.ids.tolist()
    assert document.sentences.tolist() == sorted(sentences)
    starts = moved(encoding, encoder.segmenter.word_starts(text).tolist()) | sentences
    assert np.flatnonzero(document.word_starts).tolist() == sorted(starts)
    assert len(document.word_starts) == len(document.ids)


def test_words_of_a_sentence(encoder: DocumentEncoder) -> None:
    document = encoder.encode("我来到 北京清华大学。 [playing] football，2021年！\n好")
    assert words(encoder, document) == [
        *("我", "来到", "北京", "清华大学", "。", "[", "playing", "]", "football", "，", "2021", "年", "！", "好")
    ]
    assert len(document.sentences) == 3


def test_every_sentence_begins_a_word_whatever_the_segmenter_says(tokenizer: Tokenizer) -> None:
    nothing_known = Segmenter("whole", "1", "", lambda text: [text])
    document = DocumentEncoder(tokenizer, nothing_known).encode("好。坏。")
    assert document.word_starts.tolist() == [True, False, True, False]


def test_word_that_begins_on_a_removed_character_begins_at_the_next_token(encoder: DocumentEncoder) -> None:
    document = encoder.encode("\u200b中国\u200b人民")
    assert words(encoder, document) == ["中国", "人民"]


def test_no_word_begins_inside_a_bert_word(tokenizer: Tokenizer) -> None:
    document = DocumentEncoder(tokenizer, make_segmenter("character")).encode("深度learning很好")
    assert words(DocumentEncoder(tokenizer, make_segmenter("character")), document) == [
        "深",
        "度",
        "learning",
        "很",
        "好",
    ]


@pytest.mark.parametrize("text", ["", " \n\u3000", "\x00\u200b", "\u0301"])
def test_nothing_remains(encoder: DocumentEncoder, text: str) -> None:
    document = encoder.encode(text)
    assert len(document.ids) == len(document.word_starts) == len(document.sentences) == 0


def test_sentence_without_tokens_is_dropped(encoder: DocumentEncoder) -> None:
    document = encoder.encode("好\n\u0301\n\ue000\n坏")
    assert document.sentences.tolist() == [0, 1]


def test_surrogates_are_refused(encoder: DocumentEncoder) -> None:
    with pytest.raises(DataError, match="surrogate"):
        encoder.encode("中\udc80")


def test_novel_has_the_words_of_jieba(encoder: DocumentEncoder, jieba: Segmenter, novel: list[str]) -> None:
    reference = DocumentEncoder(encoder.tokenizer, jieba)
    # Inside Latin letters and their full stops (a web address in one chapter) the two may differ.
    for text in [text for text in novel if not re.search("[A-Za-z]", text)][:10]:
        fast, slow = encoder.encode(text), reference.encode(text)
        assert np.array_equal(fast.word_starts, slow.word_starts)
        assert np.array_equal(fast.sentences, slow.sentences)


@pytest.mark.parametrize("segmenter", ["rjieba", "character", "pretokenized"])
@given(text=st.text(alphabet=st.sampled_from('中国人民好 a1.。！？…”"，\n\n\r\u3000\u0301\u200b'), max_size=60))
def test_parts_of_a_long_document_change_nothing(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, segmenter: str, text: str
) -> None:
    encoder = DocumentEncoder(tokenizer, make_segmenter(segmenter))
    with monkeypatch.context() as patch:
        whole = encoder.encode(text)
        patch.setattr(document_module, "_PART", 2)
        parts = encoder.encode(text)
    assert np.array_equal(parts.ids, whole.ids)
    assert np.array_equal(parts.word_starts, whole.word_starts)
    assert np.array_equal(parts.sentences, whole.sentences)
