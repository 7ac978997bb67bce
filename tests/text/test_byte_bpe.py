"""Equal to RoBERTa's tokenizer, id for id, on everything; nothing lost; words that begin where a token does."""

import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from nezha_ds.errors import ConfigError, DataError
from nezha_ds.text.byte_bpe import (
    BYTE_OF,
    ByteTokenizer,
    ByteVocabulary,
    byte_tokenizer_files,
    load_byte_vocabulary,
    parse_byte_vocabulary,
)
from nezha_ds.text.document import DocumentEncoder
from nezha_ds.text.kinds import open_tokenizer
from nezha_ds.text.normalize import normalize
from nezha_ds.text.segment import Segmenter, make_segmenter
from nezha_ds.text.train_vocab import train_byte_bpe
from tests.text import bpe
from tests.text.conftest import unicode_text


@pytest.fixture(scope="module")
def vocabulary(statutes: list[str]) -> ByteVocabulary:
    return bpe.trained(statutes[:150])


@pytest.fixture(scope="module")
def tokenizer(vocabulary: ByteVocabulary) -> ByteTokenizer:
    return ByteTokenizer(vocabulary)


@pytest.fixture(scope="module")
def roberta(vocabulary: ByteVocabulary, tmp_path_factory: pytest.TempPathFactory) -> ByteLevelBPETokenizer:
    return bpe.reference(vocabulary, tmp_path_factory.mktemp("pair"))


# --------------------------------------------------------------------------------------------------------------- parity


def begin(text: str, start: int, end: int) -> int:
    """Where a token's word begins: after the space that it has before it."""
    return start + (text[start] == " " and end - start > 1 and text[start + 1] != " ")


@settings(max_examples=500)
@given(text=unicode_text)
@example(text="")
@example(text="<s>中</s>国<mask> it's  a\n\n b")
def test_any_text(tokenizer: ByteTokenizer, roberta: ByteLevelBPETokenizer, text: str) -> None:
    encoding, wanted = tokenizer.encode(text), roberta.encode(text, add_special_tokens=False)
    assert encoding.ids.tolist() == wanted.ids
    assert encoding.starts.tolist() == [begin(text, *offsets) for offsets in wanted.offsets]
    assert np.all(np.diff(encoding.starts) >= 0)
    assert tokenizer.decode(encoding.ids.tolist()) == text
    assert (encoding.ids.dtype, encoding.starts.dtype, encoding.continues.dtype) == (np.int32, np.int64, np.bool_)


def test_shipped_corpus(
    tokenizer: ByteTokenizer, roberta: ByteLevelBPETokenizer, novel: list[str], statutes: list[str]
) -> None:
    for document in map(normalize, novel[:10] + statutes[::20]):
        ids = tokenizer.encode(document).ids.tolist()
        assert ids == roberta.encode(document, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == document


@given(text=unicode_text)
def test_a_token_continues_where_it_begins_inside_a_character(tokenizer: ByteTokenizer, text: str) -> None:
    encoding = tokenizer.encode(text)
    at = 0
    edges = {len(text[:place].encode()): place for place in range(len(text) + 1)}
    for index, start, continues in zip(encoding.ids.tolist(), encoding.starts, encoding.continues, strict=True):
        inside = next(place for edge, place in reversed(edges.items()) if edge <= at)
        piece = tokenizer.vocabulary.pieces[index]
        spaced = piece.startswith(b" ") and len(piece.lstrip(b" ")) == len(piece) - 1 > 0
        assert (start, continues) == (inside + spaced, at not in edges)
        at += len(piece)


@given(st.characters(categories=["Cs"]))
def test_surrogates_are_refused_with_their_place(tokenizer: ByteTokenizer, surrogate: str) -> None:
    with pytest.raises(DataError, match=f"character 1 .*U\\+{ord(surrogate):04X}"):
        tokenizer.encode(f"中{surrogate}")


def test_corpus_cannot_forge_special_tokens_and_queries_can(tokenizer: ByteTokenizer) -> None:
    text = "天下<mask>势</s>，<s>分<pad>久<unk>"
    special = set(tokenizer.vocabulary.special_ids)
    assert not special & set(tokenizer.encode(text).ids.tolist())
    found = tokenizer.encode_with_special(text)
    assert [index for index in found.ids.tolist() if index in special] == [4, 2, 0, 1, 3]
    assert tokenizer.decode(found.ids.tolist()) == text
    assert not special & set(tokenizer.encode(text).ids.tolist())  # also after a query


# ---------------------------------------------------------------------------------------------------------------- words


def words(encoder: DocumentEncoder, text: str) -> list[str]:
    document = encoder.encode(text)
    parts = np.split(document.ids, np.flatnonzero(document.word_starts)[1:])
    return [encoder.tokenizer.decode(part.tolist()) for part in parts]


def test_words_are_the_segmenters(tokenizer: ByteTokenizer, rjieba: Segmenter) -> None:
    encoder = DocumentEncoder(tokenizer, rjieba)
    text = "中华人民共和国国务院公布本条例。县级以上地方人民政府！𠮷龘"
    assert words(encoder, text) == [text[a:b] for a, b in pairwise([*rjieba.word_starts(text), len(text)])]
    assert len(encoder.encode(text).ids) > len(words(encoder, text))  # 𠮷 is no token but four bytes, and one word
    assert len(encoder.encode(text).sentences) == 3


@pytest.mark.parametrize(
    ("segmenter", "expected"),
    [
        ("rjieba", ["we", " are", " playing", " football", "\n", "in", " 2021", " now"]),
        ("pretokenized", ["we", " are", " playing", " football\n", "in", " 2021", " now"]),
    ],
)
def test_a_word_has_the_space_before_it(segmenter: str, expected: list[str]) -> None:
    pieces = ("we", "Ġare", "Ġplay", "ing", "Ġfoot", "ball", "in", "Ġ2021", "Ġnow")
    data = train_byte_bpe(dict.fromkeys(pieces, 9), 300, 2, None, ())
    encoder = DocumentEncoder(ByteTokenizer(parse_byte_vocabulary(data, "a test")), make_segmenter(segmenter))
    text = "we are playing football\nin 2021 now"
    assert words(encoder, text) == expected
    assert len(encoder.encode(text).ids) == 10


def hidden_words(vocabulary: ByteVocabulary, rjieba: Segmenter, documents: list[str]) -> float:
    """The share of words that begin inside a token."""
    tokenizer, hidden, total = ByteTokenizer(vocabulary), 0, 0
    for document in map(normalize, documents):
        encoding = tokenizer.encode(document)
        begins = encoding.starts[~encoding.continues]
        starts = [at for at in rjieba.word_starts(document).tolist() if not document[at].isspace()]
        hidden, total = hidden + len({*starts} - {*begins.tolist()}), total + len(starts)
    return hidden / total


def test_merges_learned_inside_words_hide_few(
    vocabulary: ByteVocabulary, rjieba: Segmenter, statutes: list[str], tmp_path: Path
) -> None:
    documents = statutes[:150]
    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(
        documents, vocab_size=bpe.SIZE, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    raw.save_model(str(tmp_path))
    assert hidden_words(vocabulary, rjieba, documents) < 0.02
    assert hidden_words(load_byte_vocabulary(tmp_path), rjieba, documents) > 0.1


# ---------------------------------------------------------------------------------------------------------------- files


def test_every_form_of_the_files_is_the_same_vocabulary(vocabulary: ByteVocabulary, tmp_path: Path) -> None:
    for name in ("one", "pair"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "tokenizer.json").write_bytes(vocabulary.data)
    bpe.write_pair(vocabulary, tmp_path / "pair")
    paths = ("one", "one/tokenizer.json", "pair", "pair/vocab.json")
    for found in (load_byte_vocabulary(tmp_path / path) for path in paths):
        assert found == vocabulary
        assert found.sha256 == vocabulary.sha256
    assert vocabulary.special_ids == (1, 3, 0, 2, 4)
    assert {vocabulary.text_of(vocabulary.ids[character]) for character in BYTE_OF} >= {"a", "\\xe4", " ", "\n"}
    assert [vocabulary.is_text(index) for index in range(6)] == [False] * 5 + [True]


def test_further_special_tokens_are_no_text(statutes: list[str]) -> None:
    vocabulary = bpe.trained(statutes[:20], 400, ("<law>",))
    assert (vocabulary.ids["<law>"], vocabulary.is_text(5), vocabulary.text_of(5)) == (5, False, "<law>")
    assert 5 not in ByteTokenizer(vocabulary).encode("第<law>条").ids


def changed(vocabulary: ByteVocabulary, **sections: Any) -> bytes:
    tree = json.loads(vocabulary.data)
    for name, values in sections.items():
        tree[name] = tree[name] | values if isinstance(values, dict) and tree[name] else values
    return json.dumps(tree).encode()


def faulty_files(vocabulary: ByteVocabulary) -> Iterator[tuple[bytes, str]]:
    entries = json.loads(vocabulary.data)["model"]["vocab"]
    yield b"[PAD]\n[UNK]\n", "is not a tokenizer.json or vocab.json; a vocab.txt goes with tokenizer 'bert-wordpiece'"
    yield changed(vocabulary, model={"type": "WordPiece"}), "model.type is 'WordPiece' instead of 'BPE'"
    yield changed(vocabulary, pre_tokenizer={"add_prefix_space": True}), "add_prefix_space is True instead of False"
    yield changed(vocabulary, normalizer={"type": "NFC"}), "it has a normalizer"
    yield changed(vocabulary, model={"merges": [["ĠĠ", "nowhere"]]}), "cannot be read"
    word = {"id": 9999, "content": "法", "special": False, "normalized": False}
    word |= {"single_word": False, "lstrip": False, "rstrip": False}
    yield changed(vocabulary, added_tokens=[word]), "its added token '法' is not a special one"
    holes = {token: index + (index > 2000) for token, index in entries.items()}
    yield changed(vocabulary, model={"vocab": holes}), "has ids that are not 0 to 2999; number them"
    short = {token: index for token, index in entries.items() if index < 2999}
    yield changed(vocabulary, model={"vocab": {**short, "法": 2999}, "merges": []}), "'法' is no string of bytes"


def test_faults_name_the_file_and_the_reason(vocabulary: ByteVocabulary, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for data, reason in faulty_files(vocabulary):
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            load_byte_vocabulary(path)
        assert f"vocabulary {path} " in str(caught.value)
        assert reason.replace("2999;", "2,999;") in str(caught.value)


def test_a_pair_that_lacks_something(vocabulary: ByteVocabulary, tmp_path: Path) -> None:
    bpe.write_pair(vocabulary, tmp_path)
    entries = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({key: entries[key] for key in entries if key != "<mask>"}))
    with pytest.raises(DataError, match=r"vocab\.json lacks <mask>; add each"):
        load_byte_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({key: entries[key] for key in entries if len(key) != 1}))
    with pytest.raises(DataError, match=r"vocab\.json and the merges\.txt beside it do not fit"):
        load_byte_vocabulary(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"merges\.txt cannot be read \(No such file"):
        load_byte_vocabulary(tmp_path)
    with pytest.raises(DataError, match=r"nowhere cannot be read .* name a tokenizer\.json, or a folder"):
        load_byte_vocabulary(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="ships without a vocabulary; train one with `nezha-ds vocab"):
        load_byte_vocabulary(None)


SCRIPT = """
import json, sys
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaTokenizer, RobertaTokenizerFast
folder, pair, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
auto = AutoTokenizer.from_pretrained(folder)
assert type(auto) is PreTrainedTokenizerFast, type(auto)
fast = RobertaTokenizerFast(f"{pair}/vocab.json", f"{pair}/merges.txt")
slow = RobertaTokenizer(f"{pair}/vocab.json", f"{pair}/merges.txt")
cut = auto("天" * 600, "地", truncation="only_first")
print(json.dumps({
    "ids": [one(texts, add_special_tokens=False)["input_ids"] for one in (auto, fast, slow)],
    "whole": auto(texts)["input_ids"],
    "pair": auto("甲", "丙")["token_type_ids"],
    "cut": len(cut["input_ids"]),
    "special": auto.convert_tokens_to_ids([
        auto.pad_token, auto.unk_token, auto.cls_token, auto.sep_token, auto.mask_token]),
    "decoded": auto.decode(auto(texts[0], add_special_tokens=False)["input_ids"]),
}))
"""
TEXTS = ["天下大势，分久必合。", "BERT模型 playing İstanbul é 2021年\n\n  x", "𠮷中\u200b国", "人<mask>共</s>和 <mask>"]


@pytest.mark.oracle
def test_transformers_opens_it(transformers: Path, tokenizer: ByteTokenizer, tmp_path: Path) -> None:
    vocabulary = tokenizer.vocabulary
    assert isinstance(vocabulary, ByteVocabulary)
    for folder in ("model", "pair"):
        (tmp_path / folder).mkdir()
    for name, data in byte_tokenizer_files(vocabulary, False, 512).items():
        (tmp_path / "model" / name).write_bytes(data)
    bpe.write_pair(vocabulary, tmp_path / "pair")
    command = [str(transformers), "-c", SCRIPT, str(tmp_path / "model"), str(tmp_path / "pair"), json.dumps(TEXTS)]
    environment = {"HF_HUB_OFFLINE": "1", "USE_TORCH": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours = [tokenizer.encode_with_special(text).ids.tolist() for text in TEXTS]
    assert found["ids"] == [ours] * 3
    assert found["whole"] == [[vocabulary.cls_id, *ids, vocabulary.sep_id] for ids in ours]
    count = len(tokenizer.encode("甲").ids), len(tokenizer.encode("丙").ids)
    assert found["pair"] == [0] * (count[0] + 2) + [1] * (count[1] + 1)
    assert found["cut"] == 512
    assert found["special"] == list(vocabulary.special_ids)
    assert found["decoded"] == TEXTS[0]
    opened = open_tokenizer(tmp_path / "model")
    assert [opened.encode_with_special(text).ids.tolist() for text in TEXTS] == ours
