"""RoBERTa's tokenizer, byte-level BPE, with what whole-word masking needs: where in the text each token begins.

Text is cut by GPT-2's pattern into runs of letters, of digits and of other marks; the UTF-8 bytes of each run are
joined pair by pair, as the merges say. Nothing is unknown and nothing is lost: the tokens' bytes are the text's. So
a token's place follows from its length in bytes, and Hugging Face `tokenizers` is asked for ids alone: 4 MB/s
of Chinese UTF-8 on one core, where BERT's takes a look-up for each character.

A Chinese clause is one run, in which a token may hold the end of one word and the beginning of the next. Such a word
begins at the first token that begins in it. Of the shipped text's words (rjieba) that hides the beginning of 16% where
merges were learned from raw text, 24% at 20,000 entries; of 1.0 and 1.5% where they were learned inside words, as
`nezha-ds vocab` does, at 0.61 and 0.57 tokens a character against 0.55 and 0.47.

C characters of a text, T tokens, V entries.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline

from nezha_ds.errors import ConfigError, DataError
from nezha_ds.text.normalize import surrogate_error
from nezha_ds.text.tokenizer import Encoding
from nezha_ds.text.vocab import Vocabulary

FILE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
PAD, UNK, CLS, SEP, MASK = "<pad>", "<unk>", "<s>", "</s>", "<mask>"
ORDER = (CLS, PAD, SEP, UNK, MASK)
"""The ids 0 to 4 of a new vocabulary, as RoBERTa's first four and Hugging Face's examples have them."""


def _byte_of() -> dict[str, int]:
    """GPT-2's printable character of each byte, the other way round: itself, or else one from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


BYTE_OF = _byte_of()


@dataclass(frozen=True)
class ByteVocabulary(Vocabulary):
    """V entries, each a string of GPT-2's characters for bytes, all 256 single ones among them."""

    special: ClassVar[tuple[str, str, str, str, str]] = (PAD, UNK, CLS, SEP, MASK)
    added: frozenset[str]
    """Entries that stand for themselves and not for bytes: the special tokens, and what a file has besides."""

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """(V,): the bytes of each entry."""
        return tuple(
            token.encode() if token in self.added else bytes(BYTE_OF[character] for character in token)
            for token in self.tokens
        )

    def is_text(self, index: int) -> bool:
        """Whether an entry can come from text; not <pad>, nor RoBERTa's fillers."""
        token = self.tokens[index]
        return token not in self.added and not token.startswith("madeupword")

    def text_of(self, index: int) -> str:
        """The entry's text, the bytes of half a character with a backslash: xe4."""
        return self.pieces[index].decode(errors="backslashreplace")


# ------------------------------------------------------------------------------------------------------------ the files


def load_byte_vocabulary(path: Path | None) -> ByteVocabulary:
    """Read a tokenizer.json, a vocab.json with the merges.txt beside it, or a folder with either.

    ConfigError for None: no such vocabulary ships. DataError when a file is missing, or not RoBERTa's kind.
    """
    if path is None:
        raise ConfigError(
            "tokenizer 'byte-bpe' ships without a vocabulary; train one with `nezha-ds vocab INPUT --kind byte-bpe "
            "--out tokenizer.json`, and name it with --vocabulary"
        )
    source = path
    if path.is_dir():
        source = path / (FILE if (path / FILE).exists() else VOCABULARY)
    data = _read(source)
    tree = _tree(data, source)
    if "model" not in tree:  # a vocab.json: entries to ids
        merges = _read(source.with_name(MERGES)).decode(errors="replace").splitlines()
        pairs = [tuple(line.split(" ")) for line in merges if line and not line.startswith("#version")]
        data = _compose(tree, pairs, source)
    return parse_byte_vocabulary(data, str(source))


def parse_byte_vocabulary(data: bytes, origin: str) -> ByteVocabulary:
    """The vocabulary in the bytes of a tokenizer.json; `origin` is the file that an error message points to."""
    tree = _tree(data, Path(origin))
    if reason := _difference(tree):
        raise DataError(f"vocabulary {origin} is not a byte-level BPE as RoBERTa's: {reason}; name another file")
    pipeline = _pipeline(data, origin)
    entries = pipeline.get_vocab(with_added_tokens=True)
    added = {token.content for token in pipeline.get_added_tokens_decoder().values()}
    names = sorted(entries, key=lambda token: entries[token])
    if [entries[token] for token in names] != [*range(len(names))]:
        raise DataError(f"vocabulary {origin} has ids that are not 0 to {len(names) - 1:,}; number them without gaps")
    if missing := [token for token in ByteVocabulary.special if token not in entries]:
        raise DataError(f"vocabulary {origin} lacks {', '.join(missing)}; add each as a special token")
    odd = [token for token in names if token not in added and not set(token) <= BYTE_OF.keys()]
    lacking = BYTE_OF.keys() - entries.keys()
    if odd or lacking:
        reason = f"{odd[0]!r} is no string of bytes" if odd else f"{len(lacking)} of the 256 bytes are missing"
        raise DataError(f"vocabulary {origin} is not a byte-level BPE as RoBERTa's: {reason}; name another file")
    return ByteVocabulary(tuple(names), data, frozenset({*added, *ByteVocabulary.special}))


def byte_file(entries: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Sequence[str] = ()) -> bytes:
    """A tokenizer.json of entries and merges, which Hugging Face's PreTrainedTokenizerFast opens as it is."""
    pipeline = Pipeline(models.BPE(dict(entries), [*merges]))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _dressed(pipeline, added)


def byte_tokenizer_files(vocabulary: Vocabulary, lowercase: bool, max_length: int) -> dict[str, bytes]:
    """The files with which `AutoTokenizer.from_pretrained` opens a folder as PreTrainedTokenizerFast.

    Not as RobertaTokenizerFast, which knows no token types: pairs are <s> A </s> B </s> here, with types, as this model
    was trained on them. `max_length` counts tokens, special ones included.
    """
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), vocabulary.special, strict=True)
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    assert isinstance(vocabulary, ByteVocabulary)
    return {
        FILE: _dressed(_pipeline(vocabulary.data, "")),
        "tokenizer_config.json": json.dumps(config, indent=2).encode() + b"\n",
        "special_tokens_map.json": json.dumps(names, indent=2).encode() + b"\n",
    }


def _dressed(pipeline: Pipeline, added: Sequence[str] = ()) -> bytes:
    """The pipeline's file with special tokens, decoder, and the form of samples: <s> A </s>, or <s> A </s> B </s>."""
    special = [AddedToken(token, normalized=False, special=True, lstrip=token == MASK) for token in (*ORDER, *added)]
    pipeline.add_special_tokens(special)  # pyright: ignore[reportUnknownMemberType]  # its list has no element type
    pipeline.decoder = decoders.ByteLevel()
    pipeline.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, pipeline.token_to_id(token)) for token in (CLS, SEP)],
    )
    pipeline.no_truncation()
    pipeline.no_padding()
    return pipeline.to_str(pretty=True).encode() + b"\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"vocabulary {path} cannot be read ({error.strerror}); name a {FILE}, or a folder with one or with "
            f"{VOCABULARY} and {MERGES}"
        ) from None


def _tree(data: bytes, path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise DataError(
            f"vocabulary {path} is not a {FILE} or {VOCABULARY}; a vocab.txt goes with tokenizer 'bert-wordpiece'"
        )
    return cast(dict[str, Any], tree)


def _compose(entries: Mapping[str, Any], merges: Sequence[tuple[str, ...]], path: Path) -> bytes:
    if missing := [token for token in ByteVocabulary.special if token not in entries]:
        raise DataError(f"vocabulary {path} lacks {', '.join(missing)}; add each with an id of its own, at the end")
    try:
        return byte_file(entries, cast("Sequence[tuple[str, str]]", merges))
    except Exception as error:  # the library raises nothing more exact
        raise DataError(f"vocabulary {path} and the {MERGES} beside it do not fit ({error}); copy both again") from None


def _pipeline(data: bytes, origin: str) -> Pipeline:
    try:
        return Pipeline.from_str(data.decode())
    except Exception as error:  # the library raises nothing more exact
        raise DataError(f"vocabulary {origin} cannot be read ({error}); copy it again") from None


_AS_ROBERTA: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "model": {
        "type": ("BPE",),
        "dropout": (None, 0.0),
        "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
        "byte_fallback": (None, False),
        "ignore_merges": (None, False),
    },
    "pre_tokenizer": {"type": ("ByteLevel",), "add_prefix_space": (False,), "use_regex": (None, True)},
}


def _difference(tree: Mapping[str, Any]) -> str:
    """What a tokenizer.json does that RoBERTa's does not; empty when it does the same."""
    for section, wanted in _AS_ROBERTA.items():
        found: Mapping[str, Any] = tree.get(section) or {}
        for key, values in wanted.items():
            if found.get(key) not in values:
                return f"{section}.{key} is {found.get(key)!r} instead of {values[-1]!r}"
    if tree.get("normalizer") is not None:
        return "it has a normalizer"
    words = [token["content"] for token in tree.get("added_tokens") or () if not token.get("special")]
    return f"its added token {words[0]!r} is not a special one" if words else ""


# -------------------------------------------------------------------------------------------------------- the tokenizer


class ByteTokenizer:
    """Text to ids and back, for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, lowercase: bool = False) -> None:
        assert isinstance(vocabulary, ByteVocabulary)
        assert not lowercase
        self.vocabulary = vocabulary
        self._pieces = vocabulary.pieces
        self._lengths: NDArray[np.int64] = np.array([len(piece) for piece in self._pieces], dtype=np.int64)
        # (V,): 1 for a space with something after it. The token belongs to that: its word begins there.
        spaced = [piece[:1] == b" " != piece[1:2] != b"" for piece in self._pieces]
        self._spaced: NDArray[np.int64] = np.array(spaced, dtype=np.int64)
        self._pipeline = _pipeline(_dressed(_pipeline(vocabulary.data, "")), "")
        self._pipeline.encode_special_tokens = True

    def encode(self, text: str) -> Encoding:
        """The tokens of `text`, in which `<mask>` and its like are ordinary characters: no corpus can forge a </s>.

        A token that begins inside a character continues the one before it; one that begins with the space before a word
        is told to begin at the word. DataError for half a surrogate pair.
        """
        try:
            data = np.frombuffer(text.encode(), dtype=np.uint8)
        except UnicodeEncodeError as error:
            raise surrogate_error(text, error.start) from None
        # Not `encode`, which computes offsets.
        ids = np.array(self._pipeline.encode_batch_fast([text], add_special_tokens=False)[0].ids, dtype=np.int32)
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths)
        assert len(data) == (ends[-1] if len(ids) else 0)
        begins = ends - lengths
        leading = (data & 0xC0) != 0x80  # the first byte of each character
        return Encoding(ids, (np.cumsum(leading) - 1)[begins] + self._spaced[ids], ~leading[begins])

    def encode_with_special(self, text: str) -> Encoding:
        """As `encode`, but `<mask>`, `</s>` … written in the text are the special tokens: for queries, not corpora."""
        self._pipeline.encode_special_tokens = False
        try:
            found = self._pipeline.encode(text, add_special_tokens=False)
        finally:
            self._pipeline.encode_special_tokens = True
        starts, ids = np.array(found.offsets, dtype=np.int64).reshape(-1, 2)[:, 0], np.array(found.ids, dtype=np.int32)
        return Encoding(ids, starts + self._spaced[ids], np.diff(starts, prepend=-1) == 0)

    def decode(self, ids: Iterable[int]) -> str:
        """The text whose tokens they are; bytes that are no UTF-8 with a backslash: xe4."""
        return b"".join(self._pieces[index] for index in ids).decode(errors="backslashreplace")
