"""What every test of text needs: the shipped corpus, the shipped vocabulary, one tokenizer, and any Unicode."""

import lzma
import os
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import strategies as st

from nezha_ds.text.segment import Segmenter, make_segmenter
from nezha_ds.text.tokenizer import Tokenizer
from nezha_ds.text.vocab import Vocabulary, load_vocabulary

PYTHON = Path(__file__).parents[2] / ".venv-hf" / "bin" / "python"


def shipped(name: str) -> list[str]:
    """The documents of a shipped text."""
    return lzma.decompress((files("nezha_ds") / "assets" / name).read_bytes()).decode().split("\n\n")


@pytest.fixture(scope="session")
def novel() -> list[str]:
    return shipped("sanguo.txt.xz")


@pytest.fixture(scope="session")
def statutes() -> list[str]:
    return shipped("statutes.txt.xz")


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return load_vocabulary()


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(vocabulary)


@pytest.fixture(scope="session")
def rjieba() -> Segmenter:
    return make_segmenter("rjieba")


@pytest.fixture(scope="session")
def jieba() -> Segmenter:
    return make_segmenter("jieba")


@pytest.fixture(scope="session")
def transformers() -> Path:
    """The Python of the environment with transformers 4.57.6."""
    if not PYTHON.exists():
        reason = f"{PYTHON} does not exist; install transformers 4.57.6 there"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return PYTHON


# What trips tokenizers: final sigma, dotted I, ligatures, decomposed and decomposing characters, combining marks of
# several classes, controls, odd spaces, line separators, joiners, ideographs of all planes, forged special tokens.
_TRAPS = (
    *("ΟΔΥΣΣΕΥΣ", "İstanbul", "ı", "ﬁne", "ß", "É", "e\u0301", "a\u0323\u0301", "\u0301", "\u0308", "\u302e", "\u3099"),
    *("≠", "=\u0338", "½", "Å", "가나", "\u1100\u1161\u11a8", "がぎ", "カ\u3099", "ไทย", "हिन्दी", "עִבְרִית", "العربية"),
    *("\x00", "\x07", "\x85", "\ufeff", "\ufffd", "\u200b", "\u200d", "\u00ad", "\ue000", "\U000e0001", "\uffff"),
    *(" ", "  ", "\t", "\n", "\r\n", "\x0b", "\u00a0", "\u2003", "\u2028", "\u3000", "\u180e"),
    *("中", "华人民共和国", "㐀", "豈", "\ufa0e", "\U00020000", "\U0002f800", "〇", "々", "龥", "鿿"),
    *(
        "。",
        "，",
        "……",
        "——",
        "“",
        "”",
        "《三国》",
        ".",
        "!",
        "-",
        "_",
        "$",
        "`",
        "^",
        "~",
        "·",
        "\u2e3a",
        "\U0001f600",
        "👩‍👩‍👧",
    ),
    *("[MASK]", "[SEP]", "[CLS]", "[PAD]", "[UNK]", "[mask]", "[MASK", "##ing", "playing", "BERT", "2021年3月", "3.14"),
    *("a" * 100, "a" * 101, "é" * 60, "ab" * 80, "字" * 120, "1" * 300, "U.S.", "AT&T", "x" * 99 + "中"),
)

unicode_text = st.lists(
    st.one_of(st.sampled_from(_TRAPS), st.characters(exclude_categories=["Cs"])),
    max_size=30,
).map("".join)
