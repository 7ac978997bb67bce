"""A byte-level BPE learned from a few statutes, and Hugging Face's own tokenizer on the same entries."""

import json
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer

from nezha_ds.text.byte_bpe import ByteVocabulary, parse_byte_vocabulary
from nezha_ds.text.normalize import normalize
from nezha_ds.text.train_vocab import train_byte_bpe
from nezha_ds.text.words import ByteWords

SIZE = 3000


def trained(documents: list[str], size: int = SIZE, special: tuple[str, ...] = ()) -> ByteVocabulary:
    counter = ByteWords("rjieba", None)
    for document in documents:
        counter.add(normalize(document))
    return parse_byte_vocabulary(train_byte_bpe(counter.words(), size, 2, None, special), "a test")


def write_pair(vocabulary: ByteVocabulary, folder: Path) -> None:
    """The entries and merges as RoBERTa's first releases carry them."""
    model: Any = json.loads(vocabulary.data)["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))


def reference(vocabulary: ByteVocabulary, folder: Path) -> ByteLevelBPETokenizer:
    """The whole pipeline as the `tokenizers` library itself puts it together, special tokens being ordinary text."""
    write_pair(vocabulary, folder)
    return ByteLevelBPETokenizer.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
