"""The vocabulary: one entry a line, the line's number is its id. BERT-Chinese's own file ships with the package.

The file's bytes stay with it, so that a prepared folder and an export hold an exact copy; their SHA-256 is the
vocabulary's identity in every manifest. Loading takes about 10 ms.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from nezha_ds.errors import DataError

SHIPPED = Path(__file__).parent.parent / "assets" / "vocab.txt"
SHIPPED_SHA256 = "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNK, CLS, SEP, MASK)
CONTINUATION = "##"
"""The prefix of a WordPiece that continues the piece before it."""


@dataclass(frozen=True)
class Vocabulary:
    """V entries, all different, the five special tokens among them."""

    special: ClassVar[tuple[str, str, str, str, str]] = SPECIAL_TOKENS
    """What fills up, stands for the unknown, begins a sample, ends a segment, hides a token: [PAD] to [MASK]."""

    tokens: tuple[str, ...]
    """(V,): the entry of each id."""
    data: bytes = field(repr=False)
    """The file as it was read, for exact copies."""

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each entry."""
        return {token: index for index, token in enumerate(self.tokens)}

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file in hexadecimal: the vocabulary's identity."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of the special tokens, in their order."""
        return tuple(self.ids[token] for token in self.special)

    @property
    def pad_id(self) -> int:
        """The id that fills up a batch."""
        return self.special_ids[0]

    @property
    def unk_id(self) -> int:
        """The id of every word that the vocabulary cannot spell."""
        return self.special_ids[1]

    @property
    def cls_id(self) -> int:
        """The id that begins a sample."""
        return self.special_ids[2]

    @property
    def sep_id(self) -> int:
        """The id that ends a segment."""
        return self.special_ids[3]

    @property
    def mask_id(self) -> int:
        """The id that hides a token."""
        return self.special_ids[4]

    def is_text(self, index: int) -> bool:
        """Whether an entry can come from text, and so may stand in for a masked token; not [PAD], not [unused1]."""
        token = self.tokens[index]
        return not (token.startswith("[") and token.endswith("]") and len(token) > 2)

    def text_of(self, index: int) -> str:
        """What an entry adds to a text, to look at."""
        return self.tokens[index].removeprefix(CONTINUATION)


def load_vocabulary(path: Path | None = None) -> Vocabulary:
    """Read a vocabulary; None is the shipped one, whose hash is checked.

    DataError when the file is missing, not UTF-8, empty, has an entry twice or lacks a special token.
    """
    source = path or SHIPPED
    try:
        data = source.read_bytes()
    except OSError as error:
        raise DataError(
            f"vocabulary {source} cannot be read ({error.strerror}); name a vocab.txt with one entry a line"
        ) from None
    if path is None and hashlib.sha256(data).hexdigest() != SHIPPED_SHA256:
        raise DataError(f"the shipped vocabulary {source} is damaged (its hash is not its own); install nezha-ds again")
    return parse_vocabulary(data, str(source))


def parse_vocabulary(data: bytes, origin: str) -> Vocabulary:
    """The vocabulary in the bytes of a vocab.txt; `origin` is the file that an error message points to."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"vocabulary {origin} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    # Only LF and CRLF end a line: U+2028 and its like, at which str.splitlines would also cut, can be entries.
    tokens = tuple(text.replace("\r\n", "\n").removesuffix("\n").split("\n")) if text else ()
    if not tokens:
        raise DataError(f"vocabulary {origin} is empty; it needs one entry a line")
    _refuse_duplicates(tokens, origin)
    known = set(tokens)
    if missing := [token for token in SPECIAL_TOKENS if token not in known]:
        raise DataError(f"vocabulary {origin} lacks {', '.join(missing)}; add each as a line of its own, at the end")
    return Vocabulary(tokens, data)


def _refuse_duplicates(tokens: tuple[str, ...], origin: str) -> None:
    first_lines: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        first = first_lines.setdefault(token, line)
        if first != line:
            raise DataError(f"vocabulary {origin} has {token!r} in lines {first} and {line}; remove one of the two")
