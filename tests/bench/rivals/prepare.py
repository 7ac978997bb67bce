"""The usual recipe: words by jieba, ids by BertTokenizerFast, and the positions inside words for the collator.

The positions are those that Hugging Face's run_chinese_ref.py finds (transformers 4.x, examples of mlm_wwm): every
Chinese character that continues one of jieba's words, by matching token strings against the line's set of words. It
goes by batches of 100 lines and writes the positions as JSON, as that script does; ids are written as plain bytes.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jieba
import numpy as np
from transformers import BertTokenizerFast

LINES = 100


def side(folder: str, copies: int, workers: int) -> Callable[[], float]:
    """MB of UTF-8 of part.txt, an eighth of what our side gets in each copy; the speed does not depend on the size."""
    assert copies and workers == 1
    jieba.setLogLevel(logging.ERROR)
    jieba.initialize()
    tokenizer = BertTokenizerFast(str(Path(folder) / "vocab.txt"))
    source = Path(folder) / "part.txt"

    def run() -> float:
        lines = [line for line in source.read_text().splitlines() if line]
        with (Path(folder) / "ids.bin").open("wb") as ids, (Path(folder) / "ref.jsonl").open("w") as refs:
            for start in range(0, len(lines), LINES):
                for row, ref in _encode(tokenizer, lines[start : start + LINES]):
                    ids.write(np.array(row, np.uint16).tobytes())
                    refs.write(json.dumps(ref) + "\n")
        return source.stat().st_size / 1e6

    return run


def _encode(tokenizer: BertTokenizerFast, lines: list[str]) -> Iterator[tuple[list[int], list[int]]]:
    words = [{word for word in jieba.lcut(line) if len(word) > 1 and all(map(_is_chinese, word))} for line in lines]
    for ids, known in zip(tokenizer(lines, add_special_tokens=True)["input_ids"], words, strict=True):
        yield ids, inside_words(tokenizer.convert_ids_to_tokens(ids), known)


def inside_words(tokens: Sequence[str], words: set[str]) -> list[int]:
    """The positions of single Chinese characters that continue the longest word that fits where it begins."""
    longest = max(map(len, words), default=0)
    positions: list[int] = []
    at = 0
    while at < len(tokens):
        size = _size_at(tokens, at, words, longest) if len(tokens[at]) == 1 and _is_chinese(tokens[at]) else 1
        positions += range(at + 1, at + size)
        at += size
    return positions


def _size_at(tokens: Sequence[str], at: int, words: set[str], longest: int) -> int:
    for size in range(min(len(tokens) - at, longest), 1, -1):
        if "".join(tokens[at : at + size]) in words:
            return size
    return 1


def _is_chinese(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"
