"""What a preparation is told: inputs, words, cleaning, and who works."""

from pathlib import Path

from pydantic import Field

from nezha_ds.config import Settings
from nezha_ds.corpus.clean import CleanSettings
from nezha_ds.corpus.encode import OnError
from nezha_ds.corpus.executor import ExecutorName
from nezha_ds.corpus.inputs import EMBEDDED
from nezha_ds.corpus.sources import Separation
from nezha_ds.text.kinds import KindName

SOURCE = "text"
"""The name of the only source."""


class PrepareSettings(Settings):
    """What to prepare, into which folder, and how."""

    inputs: tuple[str, ...] = (EMBEDDED,)
    """Files and folders, in order; `embedded` is the shipped texts."""
    out: Path
    """The folder for the shards."""
    tokenizer: KindName = "bert-wordpiece"
    """What makes tokens: `bert-wordpiece`, a Chinese character each; `byte-bpe`, RoBERTa's, which knows every text."""
    vocabulary: Path | None = None
    """A vocab.txt with one entry a line; unset is BERT-Chinese's own. For `byte-bpe` a tokenizer.json, or a folder with
    one or with vocab.json and merges.txt."""
    lowercase: bool = True
    """Lower-case and strip accents, as BERT-Chinese was trained; `byte-bpe` never does."""
    segmenter: str = "rjieba"
    """What finds words: `rjieba`; `jieba`, the same 18 times slower; `character`, which finds none; `pretokenized`, for
    text with spaces between words."""
    user_dictionary: Path | None = None
    """Words to add to rjieba's or jieba's own, in jieba's format: `word [count] [part of speech]` a line."""
    separation: Separation = "blank-line"
    """What ends a document of plain text: `blank-line`, `line`, or `file`."""
    field: str = "text"
    """The field of JSON lines, or the column of a table, that holds the text."""
    heldout: float = Field(default=0.02, ge=0.0, lt=1.0)
    """The share of documents set apart for evaluation."""
    clean: CleanSettings = CleanSettings()
    """Which documents to leave out."""
    deduplicate: bool = False
    """Keep only the first of documents whose normalised text is the same."""
    on_error: OnError = "stop"
    """Broken input: `stop` at the first, or `skip` it and count it in the report."""
    executor: ExecutorName = "processes"
    """Who works: `processes` of this machine, or `mpi`, the other ranks of a job. The result is the same."""
    workers: int | None = Field(default=None, ge=1)
    """Processes; unset is one per core. The result is the same. How many ranks there are `mpirun` says."""
    overwrite: bool = False
    """Replace what the folder holds if that was prepared in another way."""
