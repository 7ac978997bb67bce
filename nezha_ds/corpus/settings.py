"""What a preparation is told: inputs, words, cleaning, and who works."""

from pathlib import Path

from pydantic import Field, field_validator

from nezha_ds.config import Settings
from nezha_ds.corpus.clean import CleanSettings
from nezha_ds.corpus.encode import OnError
from nezha_ds.corpus.executor import ExecutorName
from nezha_ds.corpus.inputs import EMBEDDED
from nezha_ds.corpus.sources import Separation

SOURCE = "text"
"""The name of the only source."""


class PrepareSettings(Settings):
    """What to prepare, into which folder, and how."""

    inputs: tuple[str, ...] = (EMBEDDED,)
    """Files and folders, in order; `embedded` is the shipped texts."""
    out: Path
    """The folder for the shards."""
    vocabulary: Path | None = None
    """A vocab.txt with one entry a line; unset is BERT-Chinese's own."""
    lowercase: bool = True
    """Lower-case and strip accents, as BERT-Chinese was trained."""
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
    simplify: bool = False
    """Turn traditional characters into simplified ones, before anything looks at them."""
    clean: CleanSettings = CleanSettings()
    """Which documents to leave out."""
    deduplicate: bool = False
    """Keep only the first of documents whose normalised text is the same."""
    near_duplicates: float = Field(default=0.0, ge=0.0, le=1.0)
    """Keep only the first of documents that share this much of their passages of 5 characters (Jaccard similarity, from
    0.5 on); 0 looks for none."""
    near_values: int = Field(default=128, ge=64, le=1024)
    """Hash minima, and bytes, by which similarity is estimated: its error falls with their square root, 3.5% at 128."""
    on_error: OnError = "stop"
    """Broken input: `stop` at the first, or `skip` it and count it in the report."""
    executor: ExecutorName = "processes"
    """Who works: `processes` of this machine, or `mpi`, the other ranks of a job. The result is the same."""
    workers: int | None = Field(default=None, ge=1)
    """Processes; unset is one per core. The result is the same. How many ranks there are `mpirun` says."""
    overwrite: bool = False
    """Replace what the folder holds if that was prepared in another way."""

    @field_validator("near_duplicates")
    @classmethod
    def _is_near(cls, threshold: float) -> float:
        if 0 < threshold < 0.5:
            raise ValueError(f"{threshold} finds texts that only resemble each other; take 0.5 to 1, or 0 for none")
        return threshold
