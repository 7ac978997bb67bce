"""Which documents, and which of their lines, are worth having: named predicates, each off until its limit is set.

The report counts the documents that each name removed, a document once, under the first that it fails, and the lines
that were removed as boilerplate. Each costs one pass over the text, from 30 (repeated passages) to 300 M characters/s.
Which limits to set, the report of a run without them tells (`quality`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from nezha_ds.config import Settings
from nezha_ds.text.normalize import normalize

Predicate = Callable[[str], bool]
"""Whether a text may stay."""

PASSAGE = 10
"""Characters of the shortest passage whose repetition counts: longer than names and set phrases."""

WEB = (
    r"(?:上|下)一[篇页条章](?:[：: ].{0,60})?",
    r"(?:返回|回到)(?:顶部|首页|列表|目录).{0,20}",
    r"(?:点击)?(?:查看|阅读|展开)(?:更多|全文|原文|详情).{0,20}",
    r"(?:版权所有|Copyright\b|©|\(c\)).{0,100}",
    r".{0,30}(?:ICP[备证]|公网安备).{0,40}",
    r"(?:责任编辑|责编|编辑|来源|作者|发布时间|发布日期|浏览次数|阅读次数|点击数)[：:].{0,40}",
    r"(?:分享到|扫一扫|扫码关注|长按识别|关注我们|微信公众号).{0,40}",
)
"""What `web` stands for: lines that surround the text on Chinese pages."""


class CleanSettings(Settings):
    """What is left out. By default nothing but empty documents: 0 turns a `min` and `max_characters` off, 1 any other
    `max`.
    """

    min_characters: int = Field(default=0, ge=0)
    """Fewest characters of a document, white space not counted."""
    max_characters: int = Field(default=0, ge=0)
    """Most characters of a document, white space not counted."""
    min_chinese: float = Field(default=0.0, ge=0.0, le=1.0)
    """Smallest share of Chinese characters among those that are not white space."""
    max_repeated_lines: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest share of characters in lines that stand earlier in the document."""
    max_repeated_passages: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest share of characters in passages of 10 that stand earlier in the document."""
    max_controls: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest share, before normalisation, of control characters, U+FFFD and private use: marks of broken decoding."""
    boilerplate: tuple[str, ...] = ()
    """Lines to remove: each one that a regular expression here matches from end to end; `web` stands for a set of them
    that Chinese pages carry."""

    @field_validator("boilerplate")
    @classmethod
    def _compiles(cls, expressions: tuple[str, ...]) -> tuple[str, ...]:
        for expression in expressions:
            try:
                _together((expression,))
            except re.error as error:
                raise ValueError(f"{expression!r} is no regular expression ({error})") from None
        return expressions


def raw_predicates(settings: CleanSettings) -> Mapping[str, Predicate]:
    """The predicates on the text as it was read, before normalisation, by the name that the report gives them."""
    if settings.max_controls == 1:
        return {}
    return {"control characters": lambda text: control_share(text) <= settings.max_controls}


def predicates(settings: CleanSettings) -> Mapping[str, Predicate]:
    """The predicates on the normalised text that are on, by the name that the report gives them; the cheap first."""
    chosen: dict[str, Predicate] = {"empty": lambda text: bool(text) and not text.isspace()}
    if settings.min_characters:
        chosen["too short"] = lambda text: characters(text) >= settings.min_characters
    if settings.max_characters:
        chosen["too long"] = lambda text: characters(text) <= settings.max_characters
    if settings.min_chinese:
        chosen["not Chinese"] = lambda text: chinese_share(text) >= settings.min_chinese
    if settings.max_repeated_lines < 1:
        chosen["repeated lines"] = lambda text: repeated_lines(text) <= settings.max_repeated_lines
    if settings.max_repeated_passages < 1:
        chosen["repeated passages"] = lambda text: repeated_passages(text) <= settings.max_repeated_passages
    return chosen


def first_failed(text: str, chosen: Mapping[str, Predicate]) -> str | None:
    """The name of the first predicate that the text fails, None when it may stay."""
    return next((name for name, holds in chosen.items() if not holds(text)), None)


def boilerplate_pattern(settings: CleanSettings) -> re.Pattern[str] | None:
    """All expressions as one, None when there are none."""
    expressions = [part for one in settings.boilerplate for part in (WEB if one == "web" else (one,))]
    return _together(expressions) if expressions else None


def _together(expressions: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{one})" for one in expressions))


def without_boilerplate(text: str, pattern: re.Pattern[str]) -> tuple[str, int]:
    """The text without the lines that the pattern matches from end to end, and how many those are; 300 M
    characters/s with `web` on a novel's long lines.
    """
    lines = text.split("\n")
    kept = [line for line in lines if not pattern.fullmatch(line)]
    return ("\n".join(kept), len(lines) - len(kept))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document on its way: as it was read, as it would be encoded, and what became of it."""

    raw: str
    text: str
    """Normalised, simplified if asked for, without boilerplate and without white space at its ends."""
    failed: str | None
    """The name of the first predicate that it fails."""
    removed_lines: int
    """Lines of boilerplate that stood in it."""


class Cleaner:
    """All that settings do to a text on its way to the encoder, compiled once."""

    def __init__(self, settings: CleanSettings, simplify: Callable[[str], str] | None = None) -> None:
        self._on_raw, self._on_text = raw_predicates(settings), predicates(settings)
        self._boilerplate = boilerplate_pattern(settings)
        self._simplify = simplify

    def __call__(self, raw: str) -> Candidate:
        """Normalise, simplify, remove lines, and judge; DataError for half a surrogate pair."""
        text, removed = normalize(raw), 0
        if self._simplify:
            text = self._simplify(text)
        if self._boilerplate:
            text, removed = without_boilerplate(text, self._boilerplate)
        # Stripped, so that a copy at the end of a file or a piece, with its line end, is still a copy.
        text = text.strip()
        return Candidate(raw, text, first_failed(raw, self._on_raw) or first_failed(text, self._on_text), removed)


# ----------------------------------------------------------------------------------------------- what they look at


def characters(text: str) -> int:
    """How many characters are not white space."""
    return sum(map(len, text.split()))


# The blocks of Unicode that BERT calls Chinese: CJK unified ideographs, extensions A to E, compatibility forms.
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# C0 but for tab and line breaks, DEL and C1 but for NEL, the private areas, U+FFFD.
_CONTROLS = (
    (0x00, 0x08),
    (0x0E, 0x1F),
    (0x7F, 0x84),
    (0x86, 0x9F),
    (0xE000, 0xF8FF),
    (0xFFFD, 0xFFFD),
    (0xF0000, 0x10FFFF),
)


_PLAIN, _IS_CHINESE, _IS_CONTROL = range(3)


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """(U+110000,): of which of the blocks each code point is; 1.1 MB."""
    kinds = np.full(0x110000, _PLAIN, dtype=np.uint8)
    for kind, blocks in ((_IS_CHINESE, _CHINESE), (_IS_CONTROL, _CONTROLS)):
        for first, last in blocks:
            kinds[first : last + 1] = kind
    return kinds


def chinese_share(text: str) -> float:
    """The share of Chinese among the characters that are not white space; 0 when there are none. 200M characters/s."""
    return _count(text, _IS_CHINESE) / max(1, characters(text))


def control_share(text: str) -> float:
    """The share of characters that no sound text has; 0 for an empty one. 250M characters/s."""
    return _count(text, _IS_CONTROL) / max(1, len(text))


def _count(text: str, kind: int) -> int:
    return int(np.count_nonzero(_kinds()[code_points(text)] == kind))


def code_points(text: str) -> NDArray[np.uint32]:
    """(C,); half a surrogate pair counts as itself, because raw text may have one."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def repeated_lines(text: str) -> float:
    """The share of characters, white space not counted, in lines that stand earlier in the text."""
    seen: set[str] = set()
    repeated = 0
    for line in text.split("\n"):
        repeated += characters(line) if line in seen else 0
        seen.add(line)
    return repeated / max(1, characters(text))


def repeated_passages(text: str) -> float:
    """The share of characters, white space not counted, in passages of PASSAGE that begin earlier in the text too.

    A text followed by itself has a share of half. By hashes of all passages, sorted: 30M characters/s. A hash has the
    bits of 64 that a place leaves, so that of 10 million different passages some 50 are taken for repeats.
    """
    codes = code_points("".join(text.split())).astype(np.uint64)
    places = len(codes) - PASSAGE + 1
    if places < 2:
        return 0.0
    hashes = np.zeros(places, dtype=np.uint64)
    for shift in range(PASSAGE):  # odd, so that no character is lost in the product; 64 bits wrap around
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[shift : shift + places]
    # The place in the low bits: one sort of whole numbers, 4 times as fast as one that returns places.
    bits = np.uint64(places.bit_length())
    ordered = np.sort(hashes >> bits << bits | np.arange(places, dtype=np.uint64))
    repeats = ordered[1:][ordered[1:] >> bits == ordered[:-1] >> bits]
    begins = (repeats & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    # A character is covered when a repeat begins at it or up to PASSAGE - 1 before it.
    edges = np.zeros(len(codes) + 1, dtype=np.int64)
    edges[begins] += 1  # all different
    edges[begins + PASSAGE] -= 1
    return float(np.count_nonzero(np.cumsum(edges[:-1])) / len(codes))
