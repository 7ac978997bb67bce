"""The vocabulary's bytes are kept, its faults are named."""

import hashlib
from pathlib import Path

import pytest

from nezha_ds.errors import DataError
from nezha_ds.text import vocab
from nezha_ds.text.vocab import SPECIAL_TOKENS, Vocabulary, load_vocabulary, parse_vocabulary

SPECIAL = "\n".join(SPECIAL_TOKENS)


def test_shipped_vocabulary_is_bert_chinese(vocabulary: Vocabulary) -> None:
    assert len(vocabulary) == 21_128
    assert vocabulary.sha256 == "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"
    # The ids that every released Chinese BERT has.
    assert vocabulary.special_ids == (0, 100, 101, 102, 103)
    assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id) == (0, 100, 101)
    assert (vocabulary.sep_id, vocabulary.mask_id) == (102, 103)
    assert vocabulary.tokens[vocabulary.ids["中"]] == "中"


def test_a_copy_of_the_bytes_is_the_same_vocabulary(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(vocabulary.data)
    assert load_vocabulary(path) == vocabulary
    assert load_vocabulary(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_endings_do_not_change_the_entries(ending: str, last: bool) -> None:
    entries = (*SPECIAL_TOKENS, "中", "##a", "a\u2028b", "\x85")
    data = (ending.join(entries) + (ending if last else "")).encode()
    assert parse_vocabulary(data, "x").tokens == entries


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty"]),
        (b"[PAD]\n\xff\xfe\n", ["not UTF-8", "byte 6"]),
        (f"{SPECIAL}\n中\n文\n中\n".encode(), ["'中'", "lines 6 and 8"]),
        (b"[PAD]\n[UNK]\n[CLS]\n", ["lacks [SEP], [MASK]"]),
        (f"\ufeff{SPECIAL}\n".encode(), ["lacks [PAD]"]),
    ],
)
def test_faults_name_the_file_and_the_place(data: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_vocabulary(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.txt cannot be read \(No such file"):
        load_vocabulary(tmp_path / "nowhere.txt")


def test_damaged_shipped_file_is_not_used(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "vocab.txt"
    damaged.write_bytes(vocabulary.data + b"one more\n")
    monkeypatch.setattr(vocab, "SHIPPED", damaged)
    with pytest.raises(DataError, match="damaged"):
        load_vocabulary()
