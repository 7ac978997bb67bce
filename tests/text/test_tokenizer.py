"""Equal to BERT's own tokenizer, id for id, on everything."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from nezha_ds.errors import DataError
from nezha_ds.text import tokenizer as module
from nezha_ds.text.tokenizer import Tokenizer
from nezha_ds.text.vocab import Vocabulary, load_vocabulary
from tests.text.conftest import unicode_text

Reference = Callable[[str], tuple[list[int], list[int], list[bool]]]


def reference(vocabulary: Vocabulary, lowercase: bool, special: bool) -> BertWordPieceTokenizer:
    """The whole pipeline as the `tokenizers` library itself puts it together, from the vocabulary's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_bytes(vocabulary.data)
        built = BertWordPieceTokenizer.from_file(str(path), lowercase=lowercase)
    built._tokenizer.encode_special_tokens = not special
    return built


@pytest.fixture(scope="module")
def bert(vocabulary: Vocabulary) -> BertWordPieceTokenizer:
    return reference(vocabulary, lowercase=True, special=False)


def expected(bert: BertWordPieceTokenizer, text: str) -> tuple[list[int], list[int], list[bool]]:
    encoding = bert.encode(text, add_special_tokens=False)
    words = encoding.word_ids
    continues = [index > 0 and words[index] == words[index - 1] for index in range(len(words))]
    return encoding.ids, [start for start, _ in encoding.offsets], continues


def actual(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int], list[bool]]:
    encoding = tokenizer.encode(text)
    assert (encoding.ids.dtype, encoding.starts.dtype, encoding.continues.dtype) == (np.int32, np.int64, np.bool_)
    return encoding.ids.tolist(), encoding.starts.tolist(), encoding.continues.tolist()


@settings(max_examples=500)
@given(text=unicode_text)
@example(text="")
@example(text="[CLS]中[SEP]国[MASK]")
def test_any_text(tokenizer: Tokenizer, bert: BertWordPieceTokenizer, text: str) -> None:
    assert actual(tokenizer, text) == expected(bert, text)
    assert np.all(np.diff(tokenizer.encode(text).starts) >= 0)


@pytest.fixture(scope="module")
def cased(vocabulary: Vocabulary) -> tuple[Tokenizer, BertWordPieceTokenizer]:
    return Tokenizer(vocabulary, lowercase=False), reference(vocabulary, lowercase=False, special=False)


@given(text=unicode_text)
def test_any_text_with_case_and_accents_kept(cased: tuple[Tokenizer, BertWordPieceTokenizer], text: str) -> None:
    assert actual(cased[0], text) == expected(cased[1], text)


def test_every_code_point_between_letters_and_between_ideographs(
    tokenizer: Tokenizer, bert: BertWordPieceTokenizer
) -> None:
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    for left, right in (("a", "b"), ("中", "\u0301国")):
        for first in range(0, len(characters), 4096):
            text = " ".join(f"{left}{character}{right}" for character in characters[first : first + 4096])
            assert tokenizer.encode(text).ids.tolist() == bert.encode(text, add_special_tokens=False).ids


def test_shipped_corpus(
    tokenizer: Tokenizer, bert: BertWordPieceTokenizer, novel: list[str], statutes: list[str]
) -> None:
    documents = novel + statutes
    wanted = bert._tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    for document, encoding in zip(documents, wanted, strict=True):
        assert np.array_equal(tokenizer.encode(document).ids, encoding.ids)


def test_memory_of_runs_is_bounded_and_forgetting_changes_nothing(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 100)
    small = Tokenizer(vocabulary)
    texts = [f"word{index} 中 {index}x" for index in range(200)]
    first = [small.encode(text).ids.tolist() for text in texts]
    assert sum(map(len, small._runs)) < 120
    assert [small.encode(text).ids.tolist() for text in texts] == first


def test_most_chinese_takes_the_fast_road(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("asked the slow road")

    monkeypatch.setattr(module, "_ask", refuse)
    text = "第一回　宴桃园豪杰三结义，斩黄巾英雄首立功。“（《：；、！？—…"
    assert len(tokenizer.encode(text).ids) == len(text) - 1


@given(st.characters(categories=["Cs"]))
def test_surrogates_are_refused_with_their_place(tokenizer: Tokenizer, surrogate: str) -> None:
    with pytest.raises(DataError, match=f"character 1 .*U\\+{ord(surrogate):04X}"):
        tokenizer.encode(f"中{surrogate}")


@pytest.fixture(scope="module")
def special_bert(vocabulary: Vocabulary) -> BertWordPieceTokenizer:
    return reference(vocabulary, lowercase=True, special=True)


@given(text=unicode_text)
@example(text="天[MASK]大势，[MASK][MASK]必合[SEP]ab[MASK]cd")
def test_queries_know_special_tokens(tokenizer: Tokenizer, special_bert: BertWordPieceTokenizer, text: str) -> None:
    encoding = tokenizer.encode_with_special(text)
    ids, starts, _ = expected(special_bert, text)
    assert (encoding.ids.tolist(), encoding.starts.tolist()) == (ids, starts)
    assert len(encoding.continues) == len(ids)


def test_corpus_cannot_forge_special_tokens(tokenizer: Tokenizer) -> None:
    special = set(load_vocabulary().special_ids)
    assert not special & set(tokenizer.encode("[CLS]中[SEP][MASK][PAD]").ids.tolist())


def test_decode_joins_pieces_and_chinese(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_special("我在 BERT模型[MASK]里 playing football 123456。").ids
    assert tokenizer.decode(ids.tolist()) == "我在bert模型[MASK]里playing football 123456。"
    assert tokenizer.decode([]) == ""


@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), max_size=30))
def test_decode_gives_chinese_back(tokenizer: Tokenizer, text: str) -> None:
    known = "".join(character for character in text if character in tokenizer.vocabulary.ids)
    assert tokenizer.decode(tokenizer.encode(known).ids.tolist()) == known
