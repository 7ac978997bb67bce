"""BERT's tokenizer, id for id, at 80 MB/s of Chinese UTF-8 on one core instead of 2.

BERT isolates every Chinese character and every punctuation mark, so the id of each depends on nothing around it: one
look-up in a table over the array of code points. Only the runs between (Latin words, digits, kana, everything beyond
the Basic Multilingual Plane) go through Hugging Face `tokenizers`, once each, and are remembered. The table is filled
by asking that same pipeline, so it cannot disagree; what the pipeline does not clearly isolate is left to the runs.
English, where nearly all is run, goes at 15 MB/s. Making a tokenizer takes 0.1 s.

C characters of a text, T tokens.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline

from nezha_ds.text.normalize import surrogate_error
from nezha_ds.text.vocab import CLS, CONTINUATION, MASK, PAD, SEP, SPECIAL_TOKENS, UNK, Vocabulary

Offsets = NDArray[np.int64]
Flags = NDArray[np.bool_]

LONGEST_WORD = 100
"""BERT's limit in characters: a longer word becomes one [UNK]."""

_PLANE = 0x10000
"""The table covers code points below; its last row stands for all above."""
_RUN = -1
_SPACE = -2
_IDEOGRAPHS = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xF900, 0xFB00))
_REMEMBERED = 1 << 20
"""Characters of runs that are remembered before all are forgotten, so that memory is bounded (90 MB)."""
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")


@dataclass(frozen=True, slots=True)
class Encoding:
    """The T tokens of a text, without [CLS] and [SEP]."""

    ids: NDArray[np.int32]
    """(T,)"""
    starts: Offsets
    """(T,): the character of the text at which each token begins; never descending."""
    continues: Flags
    """(T,): whether a token continues the BERT word of the token before it, so that no word begins there."""


class Tokenizer:
    """Text to ids and back, for one vocabulary. It remembers the runs it has met."""

    def __init__(self, vocabulary: Vocabulary, lowercase: bool = True) -> None:
        self.vocabulary = vocabulary
        self.lowercase = lowercase
        self._pipeline = bert_pipeline(vocabulary, lowercase)
        self._table = _probe(self._pipeline)
        self._runs: dict[str, Offsets] = {}
        self._remembered = 0

    def encode(self, text: str) -> Encoding:
        """The tokens of `text`, in which `[MASK]` and its like are ordinary characters: no corpus can forge a [SEP].

        DataError for half a surrogate pair.
        """
        # (C,): an id, or _RUN, or _SPACE.
        kinds = self._table.take(_code_points(text), mode="clip")
        in_run = kinds == _RUN
        edges = np.flatnonzero(np.diff(in_run, prepend=False, append=False))
        begins, ends = edges[::2], edges[1::2]
        rows = self._encode_runs([text[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)])
        # How many tokens begin at each character: one at an isolated one, those of a whole run at its first.
        counts = (kinds >= 0).astype(np.int64)
        counts[begins] = [len(row) for row in rows]
        starts = np.repeat(np.arange(len(text)), counts)
        ids, continues = kinds[starts], np.zeros(len(starts), dtype=np.bool_)
        if rows:
            from_run = np.flatnonzero(in_run[starts])
            pieces = np.concatenate(rows)
            ids[from_run] = pieces[:, 0]
            starts[from_run] += pieces[:, 1]
            continues[from_run] = pieces[:, 2]
        return Encoding(ids, starts, continues)

    def encode_with_special(self, text: str) -> Encoding:
        """As `encode`, but `[MASK]`, `[SEP]` … written in the text are the special tokens: for queries, not corpora."""
        parts: list[Encoding] = []
        begin = 0
        for part in _SPECIAL.split(text):
            special = part in SPECIAL_TOKENS
            found = _one_token(self.vocabulary.ids[part]) if special else self.encode(part)
            parts.append(Encoding(found.ids, found.starts + begin, found.continues))
            begin += len(part)
        return Encoding(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.continues for part in parts]),
        )

    def split(self, text: str) -> tuple[str, list[str]]:
        """The characters that stand alone whatever surrounds them, in one string, and the runs between them."""
        codes = _code_points(text)
        kinds = self._table.take(codes, mode="clip")
        in_run = kinds == _RUN
        edges = np.flatnonzero(np.diff(in_run, prepend=False, append=False)).tolist()
        runs = [text[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)]
        return codes[kinds >= 0].tobytes().decode("utf-32-le"), runs

    def decode(self, ids: Iterable[int]) -> str:
        """The tokens as text to look at: pieces joined, spaces only between words that Chinese would not join."""
        text = ""
        for index in ids:
            token = self.vocabulary.tokens[index]
            if token.startswith(CONTINUATION) and text:
                token = token.removeprefix(CONTINUATION)
            elif text and self._is_of_word(text[-1]) and self._is_of_word(token[0]):
                text += " "
            text += token
        return text

    def _is_of_word(self, character: str) -> bool:
        return character.isalnum() and bool(self._table[min(ord(character), _PLANE)] == _RUN)

    def _encode_runs(self, runs: list[str]) -> list[Offsets]:
        """For each run its (T, 3) tokens: id, first character within the run, whether it continues a word."""
        if self._remembered > _REMEMBERED:
            self._runs.clear()
            self._remembered = 0
        new = [run for run in dict.fromkeys(runs) if run not in self._runs]
        if new:
            self._runs.update(zip(new, _ask(self._pipeline, new), strict=True))
            self._remembered += sum(map(len, new))
        return [self._runs[run] for run in runs]


def bert_pipeline(vocabulary: Vocabulary, lowercase: bool = True) -> Pipeline:
    """BERT's tokenizer as Hugging Face builds it (BertTokenizerFast), without special tokens: the slow road."""
    pipeline = Pipeline(models.WordPiece(dict(vocabulary.ids), unk_token=UNK, max_input_chars_per_word=LONGEST_WORD))
    pipeline.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return pipeline


def tokenizer_files(vocabulary: Vocabulary, lowercase: bool, max_length: int) -> dict[str, bytes]:
    """The files, name to contents, with which `AutoTokenizer.from_pretrained` opens a folder as BertTokenizerFast.

    `max_length` counts tokens, special ones included; longer inputs are cut there when truncation is asked for.
    """
    pipeline = bert_pipeline(vocabulary, lowercase)
    special = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    pipeline.add_special_tokens(special)  # pyright: ignore[reportUnknownMemberType]  # its list has no element type
    pipeline.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, vocabulary.cls_id), (SEP, vocabulary.sep_id)],
    )
    pipeline.decoder = decoders.WordPiece(prefix=CONTINUATION)
    names = {"pad_token": PAD, "unk_token": UNK, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK}
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": max_length,
        **names,
    }
    return {
        "vocab.txt": vocabulary.data,
        "tokenizer.json": pipeline.to_str(pretty=True).encode() + b"\n",
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json(names),
    }


def _json(tree: Mapping[str, object]) -> bytes:
    return json.dumps(tree, indent=2).encode() + b"\n"


def _code_points(text: str) -> NDArray[np.uint32]:
    """(C,) at 3 GB/s; DataError for half a surrogate pair."""
    try:
        return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    except UnicodeEncodeError as error:
        raise surrogate_error(text, error.start) from None


def _one_token(index: int) -> Encoding:
    return Encoding(np.array([index], dtype=np.int32), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.bool_))


@cache
def _candidates() -> str:
    """The characters below _PLANE that BERT may isolate or take for white space: ideographs, punctuation, symbols."""
    marks = {index for index in range(_PLANE) if unicodedata.category(chr(index))[0] in "PSZ"}
    return "".join(map(chr, sorted(marks.union(*_IDEOGRAPHS))))


def _probe(pipeline: Pipeline) -> NDArray[np.int32]:
    """(_PLANE + 1,) the id of each code point that BERT isolates whatever stands beside it; else _SPACE or _RUN.

    Every candidate is put between two letters. It is isolated when it is one token that shares its word with neither,
    and white space when it is none and the letters still fall into two words.
    """
    characters = _candidates()
    encoding = pipeline.encode("a" + "".join(character + "a" for character in characters), add_special_tokens=False)
    # Tokens in order: candidate j stands at 2j + 1, and every letter lies in some token.
    starts, ends = np.array(encoding.offsets, dtype=np.int64).T
    ids, words = np.array(encoding.ids, dtype=np.int32), np.array(encoding.word_ids, dtype=np.int64)
    # Whether token k and the next belong to two words and share no character.
    parted = (words[:-1] != words[1:]) & (ends[:-1] <= starts[1:])
    lone = parted[:-1] & parted[1:] & (starts[1:-1] % 2 == 1) & (ends[1:-1] - starts[1:-1] == 1)
    isolated = np.flatnonzero(lone) + 1
    spaces = np.flatnonzero(parted & (ends[:-1] % 2 == 1) & (starts[1:] - ends[:-1] == 1))

    table = np.full(_PLANE + 1, _RUN, dtype=np.int32)
    codes = _code_points(characters)
    table[codes[starts[isolated] // 2]] = ids[isolated]
    table[codes[ends[spaces] // 2]] = _SPACE
    return table


def _ask(pipeline: Pipeline, runs: list[str]) -> list[Offsets]:
    """For each run its (T, 3) tokens, in one call: a space always ends a word, and no run holds one."""
    encoding = pipeline.encode(" ".join(runs), add_special_tokens=False)
    starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
    words = np.array(encoding.word_ids, dtype=np.int64)
    begins = np.cumsum([0, *(len(run) + 1 for run in runs)])
    bounds = np.searchsorted(starts, begins)
    tokens = np.empty((len(starts), 3), dtype=np.int64)
    tokens[:, 0] = encoding.ids
    tokens[:, 1] = starts - np.repeat(begins[:-1], np.diff(bounds))
    tokens[:, 2] = np.diff(words, prepend=-1) == 0
    return np.split(tokens, bounds[1:-1])
