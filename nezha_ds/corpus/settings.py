"""What a preparation is told: inputs, words, cleaning, and who works."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from nezha_ds.config import Settings, Tree
from nezha_ds.corpus.clean import CleanSettings
from nezha_ds.corpus.encode import OnError
from nezha_ds.corpus.executor import ExecutorName
from nezha_ds.corpus.inputs import EMBEDDED
from nezha_ds.corpus.kinds import Separation
from nezha_ds.corpus.sources import Source
from nezha_ds.errors import ConfigError
from nezha_ds.text.kinds import KindName

SOURCE = "text"
"""The name of the source that plain inputs are."""
_NAME = re.compile(r"[\w-]+")
_SOURCE = re.compile(rf"({_NAME.pattern})(?::(\d{{1,9}}))?=(.+)", re.DOTALL)


class SourceSettings(Settings):
    """One of several texts that a corpus is made of."""

    inputs: tuple[str, ...] = Field(min_length=1)
    """Files, folders, globs and URIs, in order; `embedded` is the shipped texts."""
    weight: int = Field(default=0, ge=0)
    """Its share of the samples beside the weights of the others; 0 for what its length makes it, all sources alike."""
    separation: Separation | None = None
    """What ends a document here; unset is what holds for all."""
    field: str | None = None
    """The field or column that holds the text here; unset is what holds for all."""


class PrepareSettings(Settings):
    """What to prepare, into which folder, and how."""

    inputs: tuple[str, ...] = ()
    """Files, folders, globs such as `news/**/*.jsonl.gz`, and URIs of all these such as `s3://bucket/news`, in order;
    `embedded` is the shipped texts, which is also what there is without inputs and sources. They are the source `text`.
    """
    sources: dict[str, SourceSettings] = Field(default_factory=dict[str, SourceSettings])
    """More sources by name, in order; of equal documents the one of the earliest source is kept."""
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
    """What ends a document of plain text: `blank-line`, `line`, or `file`. With `blank-line`, files that begin as
    WikiExtractor's do, its blocks or its JSON, are read as such; `wikiextractor` says that all are, `.jsonl` too.
    """
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

    @model_validator(mode="after")
    def _sources_go_together(self) -> Self:
        for name in self.sources:
            if not _NAME.fullmatch(name):
                raise ValueError(f"source {name!r} must be named by letters, digits, - and _ alone")
        if self.inputs and SOURCE in self.sources:
            raise ValueError(f"source {SOURCE!r} is what plain inputs form; give one of the two another name")
        weightless = [source.name for source in self.all_sources() if not source.weight]
        if any(source.weight for source in self.sources.values()) and weightless:
            reason = f"{', '.join(weightless)} has none" + f" (plain inputs are {SOURCE!r})" * bool(self.inputs)
            raise ValueError(f"some sources have weights and {reason}; give every source a weight, or none of them")
        return self

    def all_sources(self) -> tuple[Source, ...]:
        """The plain inputs as a source, if there are any, then the named ones."""
        plain = self.inputs or (() if self.sources else (EMBEDDED,))
        sources = {SOURCE: SourceSettings(inputs=plain), **self.sources} if plain else self.sources
        return tuple(
            Source(
                name=name,
                inputs=source.inputs,
                weight=source.weight,
                separation=source.separation or self.separation,
                field=source.field or self.field,
            )
            for name, source in sources.items()
        )


def parse_sources(arguments: Sequence[str]) -> dict[str, Tree]:
    """`NAME[:WEIGHT]=INPUT`, of which a name's may be many, as the settings that they give to each source."""
    sources: dict[str, Tree] = {}
    for argument in arguments:
        match = _SOURCE.fullmatch(argument)
        if match is None:
            raise ConfigError(f"--source {argument!r} is not of the form NAME=INPUT or NAME:WEIGHT=INPUT")
        name, weight, location = match.groups()
        source = sources.setdefault(name, {"inputs": []})
        source["inputs"].append(location)
        if weight and source.setdefault("weight", int(weight)) != int(weight):
            raise ConfigError(
                f"--source {argument!r} gives {name!r} another weight than {source['weight']}; give it one"
            )
    return sources
