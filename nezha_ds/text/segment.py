"""The only door to jieba and rjieba: where words begin.

rjieba is jieba's algorithm and dictionary in Rust; between two Chinese characters the two decide alike, and only inside
runs of Latin letters and digits, where BERT's own words rule, do they differ. Per core, on Chinese UTF-8:

    rjieba         20 MB/s   the default
    jieba         0.7 MB/s   the reference
    character      no words: each character by itself, for masking without whole words
    pretokenized   words as the text has them, between spaces: gold words, or ids of anonymised text

A user dictionary adds words to jieba or rjieba, and the two still decide alike. Both libraries are loaded at first use:
0.1 s for rjieba's dictionary, 0.7 s for jieba's.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nezha_ds.config import nearest
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.files import sha256_of


@dataclass(frozen=True)
class Segmenter:
    """A way to find words, with what its results depend on. To be made in each process, not sent to it."""

    name: str
    version: str
    dictionary_sha256: str
    cut: Callable[[str], list[str]] = field(repr=False)
    """A text to its words, which add up to it: white space and punctuation are words too."""

    def word_starts(self, text: str) -> NDArray[np.int64]:
        """(W,) char offsets at which words begin, ascending, the first 0."""
        pieces = self.cut(text)
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        ends = np.cumsum(lengths)
        assert not pieces or ends[-1] == len(text)
        return ends - lengths


def make_segmenter(name: str = "rjieba", user_dictionary: Path | None = None) -> Segmenter:
    """The segmenter of that name, with the words of a user dictionary if there is one.

    ConfigError when there is no such segmenter, or it takes no dictionary; DataError for a dictionary that is not one.
    """
    if name not in _SEGMENTERS:
        raise ConfigError(f"there is no segmenter {name!r}{nearest(name, _SEGMENTERS)}")
    if user_dictionary is None:
        return _SEGMENTERS[name](())
    if name not in _WITH_DICTIONARY:
        raise ConfigError(
            f"segmenter {name!r} takes no user dictionary ({user_dictionary}); use {' or '.join(_WITH_DICTIONARY)}"
        )
    words = read_user_dictionary(user_dictionary)
    segmenter = _SEGMENTERS[name](words)
    both = f"{segmenter.dictionary_sha256} {words!r}"
    return replace(segmenter, dictionary_sha256=hashlib.sha256(both.encode()).hexdigest())


UserWord = tuple[str, int | None]
"""A word and how often it occurs, in jieba's count of 60 million words; None is just often enough to be found."""

_USER_LINE = re.compile(r"(\S+)(?: +([0-9]+))?(?: +[a-z]+)?")


def read_user_dictionary(path: Path) -> tuple[UserWord, ...]:
    """The words of a dictionary in jieba's format: `word [count] [part of speech]` a line, the last one of each word.

    DataError names file and line of what is no such line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"user dictionary {path} cannot be read ({error.strerror}); name a file with one word a line"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"user dictionary {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    words = dict[str, int | None]()
    for number, line in enumerate(text.split("\n"), start=1):
        if not (entry := line.strip()):
            continue
        match = _USER_LINE.fullmatch(entry)
        count = int(match[2]) if match and match[2] else None
        # jieba takes a count of 0 for an order never to find the word; rjieba does not.
        if match is None or count == 0 or (count or 0) > _LARGEST_COUNT:
            raise DataError(
                f"user dictionary {path}, line {number:,}: {entry!r:.60} is not `word [count] [part of speech]` with a "
                f"count of 1 to {_LARGEST_COUNT:,}"
            )
        words[match[1]] = count
    return tuple(words.items())


_LARGEST_COUNT = 10**9


def _rjieba(words: Sequence[UserWord]) -> Segmenter:
    import rjieba

    # The dictionary is compiled in, compressed: the module that holds it stands for it.
    compiled = find_spec("rjieba.rjieba")
    assert compiled and compiled.origin
    cut = rjieba.cut
    if words:
        own: Any = rjieba.Jieba()  # a dictionary of its own: rjieba.cut's is shared by the process
        for word, count in words:
            own.add_word(word, count, None)
        cut = own.cut
    return Segmenter("rjieba", version("rjieba"), sha256_of(Path(compiled.origin)), cut)


def _jieba(words: Sequence[UserWord]) -> Segmenter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 2020: invalid escapes, pkg_resources
        import jieba  # pyright: ignore[reportMissingTypeStubs]
    tokenizer: Any = jieba.Tokenizer()
    # What initialize() does, without its log lines and without its cache file: one name in the system's temporary
    # folder for all processes and users, read back with marshal whoever wrote it. That would save 0.5 s.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    for word, count in words:
        tokenizer.add_word(word, count)
    dictionary = Path(str(jieba.__file__)).with_name("dict.txt")
    return Segmenter("jieba", version("jieba"), sha256_of(dictionary), tokenizer.lcut)


_NO_DICTIONARY = hashlib.sha256(b"").hexdigest()


def _character(_: Sequence[UserWord]) -> Segmenter:
    return Segmenter("character", "1", _NO_DICTIONARY, list)


_SPACED = re.compile(r"\S+\s*|\s+")
"""A word and the spaces after it, or the spaces that begin a text."""


def _pretokenized(_: Sequence[UserWord]) -> Segmenter:
    return Segmenter("pretokenized", "1", _NO_DICTIONARY, _SPACED.findall)


_SEGMENTERS: dict[str, Callable[[Sequence[UserWord]], Segmenter]] = {
    "rjieba": _rjieba,
    "jieba": _jieba,
    "character": _character,
    "pretokenized": _pretokenized,
}
_WITH_DICTIONARY = ("rjieba", "jieba")
