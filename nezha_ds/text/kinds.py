"""The kinds of tokenizer: how each reads its vocabulary, makes tokens, and writes the files of a model folder."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nezha_ds.config import nearest
from nezha_ds.errors import DataError
from nezha_ds.text.byte_bpe import FILE, ByteTokenizer, byte_tokenizer_files, load_byte_vocabulary
from nezha_ds.text.tokenizer import Encoding, Tokenizer, tokenizer_files
from nezha_ds.text.vocab import Vocabulary, load_vocabulary

KindName = Literal["bert-wordpiece", "byte-bpe"]


class AnyTokenizer(Protocol):
    """Text to ids and back."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What the ids mean."""
        ...

    def encode(self, text: str) -> Encoding:
        """The tokens of a text in which nothing is special."""
        ...

    def encode_with_special(self, text: str) -> Encoding:
        """The tokens of a text in which special tokens may be written."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Tokens as text to look at."""
        ...


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer."""

    file: str
    """The file of a prepared folder that holds the vocabulary."""
    load: Callable[[Path | None], Vocabulary]
    """Reads a vocabulary; None is the shipped one."""
    make: Callable[[Vocabulary, bool], AnyTokenizer]
    """From the vocabulary, and whether to lower-case."""
    files: Callable[[Vocabulary, bool, int], dict[str, bytes]]
    """What a model folder needs, by name: from the vocabulary, whether to lower-case, and the longest sample."""
    lowercases: bool
    """Whether it can lower-case."""


KINDS: dict[str, Kind] = {
    "bert-wordpiece": Kind("vocab.txt", load_vocabulary, Tokenizer, tokenizer_files, lowercases=True),
    "byte-bpe": Kind(FILE, load_byte_vocabulary, ByteTokenizer, byte_tokenizer_files, lowercases=False),
}


def kind_of(name: str, origin: Path | str) -> Kind:
    """The kind of that name, which `origin` gives; DataError when this version does not know it."""
    if name not in KINDS:
        raise DataError(f"{origin} has tokenizer {name!r}{nearest(name, KINDS)}; update, or prepare again")
    return KINDS[name]


def open_tokenizer(folder: Path) -> AnyTokenizer:
    """The tokenizer of a model folder: BERT's if it has a vocab.txt, else byte-level BPE. DataError without either."""
    bert = KINDS["bert-wordpiece"]
    if not (folder / bert.file).exists() and (folder / FILE).exists():
        return ByteTokenizer(load_byte_vocabulary(folder / FILE))
    path = folder / "tokenizer_config.json"
    try:
        # Where the folder does not say, as BERT-Chinese.
        lowercase = json.loads(path.read_text(encoding="utf-8")).get("do_lower_case", True) if path.exists() else True
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); export again, or copy it again") from None
    return bert.make(load_vocabulary(folder / bert.file), lowercase is not False)
