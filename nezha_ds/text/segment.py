"""The only door to jieba and rjieba: where words begin.

rjieba is jieba's algorithm and dictionary in Rust; between two Chinese characters the two decide alike, and only inside
runs of Latin letters and digits, where BERT's own words rule, do they differ. Per core, on Chinese UTF-8:

    rjieba     20 MB/s   the default
    jieba     0.7 MB/s   the reference
    character  no words: each character by itself, for masking without whole words

Both libraries are loaded at first use: 0.1 s for rjieba's dictionary, 0.7 s for jieba's.
"""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nezha_ds.config import nearest
from nezha_ds.errors import ConfigError
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


def make_segmenter(name: str = "rjieba") -> Segmenter:
    """The segmenter of that name; ConfigError when there is none."""
    if name not in _SEGMENTERS:
        raise ConfigError(f"there is no segmenter {name!r}{nearest(name, _SEGMENTERS)}")
    return _SEGMENTERS[name]()


def _rjieba() -> Segmenter:
    import rjieba

    # The dictionary is compiled in, compressed: the module that holds it stands for it.
    compiled = find_spec("rjieba.rjieba")
    assert compiled and compiled.origin
    return Segmenter("rjieba", version("rjieba"), sha256_of(Path(compiled.origin)), rjieba.cut)


def _jieba() -> Segmenter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 2020: invalid escapes, pkg_resources
        import jieba  # pyright: ignore[reportMissingTypeStubs]
    tokenizer: Any = jieba.Tokenizer()
    # What initialize() does, without its log lines and without its cache file: one name in the system's temporary
    # folder for all processes and users, read back with marshal whoever wrote it. That would save 0.5 s.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    dictionary = Path(str(jieba.__file__)).with_name("dict.txt")
    return Segmenter("jieba", version("jieba"), sha256_of(dictionary), tokenizer.lcut)


def _character() -> Segmenter:
    no_dictionary = hashlib.sha256(b"").hexdigest()
    return Segmenter("character", "1", no_dictionary, list)


_SEGMENTERS: dict[str, Callable[[], Segmenter]] = {"rjieba": _rjieba, "jieba": _jieba, "character": _character}
