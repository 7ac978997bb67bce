"""The same counts, the same vocabulary, in every process; entries earn their places."""

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline

from nezha_ds.text import train_vocab, words
from nezha_ds.text.byte_bpe import BYTE_OF, ORDER, parse_byte_vocabulary
from nezha_ds.text.normalize import normalize
from nezha_ds.text.tokenizer import Tokenizer, bert_pipeline
from nezha_ds.text.train_vocab import TRAINERS, units_of
from nezha_ds.text.vocab import SPECIAL_TOKENS, load_vocabulary, parse_vocabulary
from nezha_ds.text.words import BertWords, ByteWords, prune, ranked
from tests.text.conftest import unicode_text

WORDS = Counter({"low": 5, "lower": 2, "newest": 6, "widest": 3, "中": 9, "国": 4, "罕": 1, "ǆ": 1, "aǆ": 1})


def entries(kind: str, counts: dict[str, int], size: int, **options: Any) -> tuple[str, ...]:
    options = {"min_frequency": 2, "alphabet": None, "special": ()} | options
    return parse_vocabulary(TRAINERS[kind](counts, size, **options), "a test").tokens


SCRIPT = """
import hashlib, random
from nezha_ds.text.train_vocab import TRAINERS
draw = random.Random(1)
pairs = [("".join(draw.choices("abcdefgh", k=draw.randint(2, 6))), draw.randint(1, 4)) for _ in range(3000)]
draw.shuffle(pairs)
for kind in ("bert-wordpiece", "byte-bpe", "words"):
    print(hashlib.sha256(TRAINERS[kind](dict(sorted(pairs)), 1000, 2, None, ())).hexdigest())
"""


def test_every_process_and_any_number_of_threads_give_the_same_bytes() -> None:
    """3,000 short words with small counts: ties everywhere. The trainers alone give another vocabulary each time."""
    found = set()
    for threads in ("1", "2", "2"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
    assert len(found.pop().split()) == 3


def test_wordpieces_are_characters_and_then_what_is_most_frequent() -> None:
    found = entries("bert-wordpiece", WORDS, 40)
    assert found[:5] == SPECIAL_TOKENS
    assert {"l", "n", "w", "##o", "##w", "##e", "##s", "##t", "中", "国"} <= {*found}
    assert not {"罕", "ǆ", "a", "##ǆ"} & {*found}  # met once
    assert {"##es", "##est", "newest", "low"} <= {*found}
    assert len(found) == len({*found}) <= 40
    assert entries("bert-wordpiece", WORDS, 40, min_frequency=4)[5:7] == ("l", "n")
    assert "罕" in entries("bert-wordpiece", WORDS, 60, min_frequency=1)


def test_the_alphabet_is_the_most_frequent_characters() -> None:
    counts = {chr(0x4E00 + number): 1000 - number for number in range(300)}
    assert entries("bert-wordpiece", counts, 200, alphabet=50)[5:] == tuple(sorted(counts)[:50])
    # Where nothing has pieces, characters get all the entries.
    assert entries("bert-wordpiece", counts, 200)[5:] == tuple(sorted(counts)[:195])
    mixed = counts | {f"{left}{right}": 500 for left in "abcdefgh" for right in "ijklmnop"}
    found = entries("bert-wordpiece", mixed, 200)
    assert len(found) == 200
    # 130 characters, 8 of them twice; all 64 words; and one more character in what is left.
    assert [*map(len, found[5:])].count(1) == 130 - 8 + 1
    assert sum(token in mixed and len(token) == 2 for token in found) == 64


def test_special_tokens_come_first() -> None:
    assert entries("bert-wordpiece", WORDS, 40, special=("[LAW]",))[:6] == (*SPECIAL_TOKENS, "[LAW]")
    data = TRAINERS["byte-bpe"]({"law": 9}, 300, 2, None, ("<law>",))
    assert parse_byte_vocabulary(data, "a test").tokens[:6] == (*ORDER, "<law>")


def test_whole_words_are_the_most_frequent() -> None:
    counts = {"1023": 7, "88": 7, "4711": 9, "5": 1, "9" * 101: 50}
    assert entries("words", counts, 100)[5:] == ("4711", "1023", "88")
    assert entries("words", counts, 7)[5:] == ("4711", "1023")


def test_byte_pairs_are_of_bytes() -> None:
    vocabulary = parse_byte_vocabulary(TRAINERS["byte-bpe"]({"low": 5, "lower": 2, "è¯į": 9}, 265, 2, None, ()), "")
    assert vocabulary.tokens[5:261] == tuple(sorted(BYTE_OF))
    assert vocabulary.tokens[261:263] == ("¯į", "è¯į")
    assert vocabulary.text_of(262) == "词"


def test_many_words_are_divided_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {f"w{number}": 1 + 3 * (number % 5) for number in range(2000)}
    whole = Counter(" ".join(train_vocab._repeated(counts, 1)).split())
    assert whole == counts
    monkeypatch.setattr(train_vocab, "FED", sum(counts.values()) // 7)
    divisor = train_vocab._divisor(counts)
    part = Counter(" ".join(train_vocab._repeated(counts, divisor)).split())
    assert 7 <= divisor <= 8
    assert train_vocab._threshold(counts, 2) == 1
    for often in (1, 4, 7, 10, 13):
        kept = sum(number for word, number in part.items() if counts[word] == often)
        assert kept == pytest.approx(often * 400 / divisor, rel=0.2)


# ------------------------------------------------------------------------------------------------------------- counting


@pytest.fixture(scope="module")
def counter() -> BertWords:
    return BertWords(lowercase=True)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return bert_pipeline(load_vocabulary())


@given(texts=st.lists(unicode_text, max_size=3))
def test_bert_words_are_those_of_its_pre_tokenizer(counter: BertWords, pipeline: Pipeline, texts: list[str]) -> None:
    expected: Counter[str] = Counter()
    counter._pieces.clear()
    for text in texts:
        counter.add(text)
        normal = pipeline.normalizer.normalize_str(text)
        expected.update(word for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(normal))
    assert counter.words() == expected


def test_byte_words_keep_the_space_before_them() -> None:
    counter = ByteWords("rjieba", None)
    counter.add("我们 playing 北京，北京\n 北京")
    decoded = {
        bytes(BYTE_OF[character] for character in word).decode(): count for word, count in counter.words().items()
    }
    assert decoded == {"我们": 1, " playing": 1, " 北京": 2, "，": 1, "北京": 1, "\n": 1}


def test_rare_words_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counter({f"w{number:02d}": number % 7 for number in range(20)})
    few = counts.copy()
    prune(few, 11)
    assert few == counts
    prune(few, 10)
    assert dict(few) == dict(ranked(counts)[:10])
    monkeypatch.setattr(words, "KEPT", 50)
    counter = BertWords(lowercase=True)
    for number in range(1000):
        counter.add(f"甲 甲 a{number}")
    assert counter.words()["甲"] == 2000
    assert len(counter.words()) < 150


def test_every_word_of_the_text_can_be_written(statutes: list[str]) -> None:
    counter = BertWords(lowercase=True)
    for document in statutes[:50]:
        counter.add(normalize(document))
    vocabulary = parse_vocabulary(TRAINERS["bert-wordpiece"](counter.words(), 5000, 1, None, ()), "a test")
    tokenizer = Tokenizer(vocabulary)
    assert all(vocabulary.unk_id not in tokenizer.encode(normalize(document)).ids for document in statutes[:50])
    assert {unit for word in counter.words() for unit in units_of(word)} <= vocabulary.ids.keys()
