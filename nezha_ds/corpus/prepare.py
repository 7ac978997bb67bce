"""Text in, a folder of shards out: the same bytes from one process or many, in one go or after any number of crashes.

1. The input is divided into tasks of 4 to 80 MB of text, by the files alone (`sources.cut`).
2. With `deduplicate`, a survey reads every task's document keys and names the later copies.
3. Each task writes its shards and then its receipt. A restart finds finished tasks by their receipts.
4. A document is held out when its key, a hash of its text, is under a bound, so copies share a side. When that leaves
   a side without any document, which happens to a small corpus, the bound moves just far enough and step 3 runs again:
   two different documents are enough for both sides; a single one is for training.
5. The vocabulary and the report are written, and last the manifest: a folder that has one is complete.

`prepare.json` holds what the bytes depend on. The same folder with anything else is refused unless told to overwrite.
About 10 MB/s of UTF-8 a core; tasks share nothing, so that processes add up, on one machine or, by MPI, on many that
share a file system.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from rich.console import Console

from nezha_ds.config import Settings
from nezha_ds.corpus.clean import CleanSettings
from nezha_ds.corpus.dedup import KEYS, later_copies
from nezha_ds.corpus.encode import RECEIPTS, Job, OnError, Receipt, Work, encode, survey
from nezha_ds.corpus.executor import ExecutorName, Pool, bar, on_ranks, processes
from nezha_ds.corpus.faults import Faults, OnFault, stop
from nezha_ds.corpus.inputs import EMBEDDED, cut, find_files, stamp, text_size
from nezha_ds.corpus.report import make_report, summary
from nezha_ds.corpus.sources import Piece, Separation
from nezha_ds.errors import ConfigError, DataError, LaunchError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.shards import (
    FORMAT,
    MANIFEST,
    SHARD_BYTES,
    VOCABULARY,
    Manifest,
    SegmenterEntry,
    TokenizerEntry,
    check_sizes,
    read_manifest,
    write_manifest,
)
from nezha_ds.text.normalize import NORMALISATION
from nezha_ds.text.segment import make_segmenter
from nezha_ds.text.vocab import Vocabulary, load_vocabulary

T = TypeVar("T")

IDENTITY = "prepare.json"
REPORT = "report.json"

_SMALLEST_TASK = 4 << 20
_LARGEST_TASK = SHARD_BYTES * 5 // 4
"""Text whose shard is just under SHARD_BYTES: three bytes a Chinese character, 2.2 a token."""
_TASKS = 128
"""A corpus of ordinary size is divided into about so many, to keep many processes busy to the end."""
_BYTES_PER_BYTE = 0.75
"""Bytes of shards per byte of text."""


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


class Identity(Settings):
    """What the bytes of a prepared folder depend on."""

    format: int
    inputs: tuple[str, ...]
    files: str
    """A hash of every input file's path, size and time of change."""
    tokenizer: TokenizerEntry
    segmenter: SegmenterEntry
    normalisation: str
    separation: Separation
    field: str
    heldout: float
    clean: CleanSettings
    deduplicate: bool

    @property
    def digest(self) -> str:
        """All of it as one hash."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def differences(self, other: "Identity") -> list[str]:
        """The names of the fields that differ."""
        return [name for name in Identity.model_fields if getattr(self, name) != getattr(other, name)]


Start = Callable[[int], AbstractContextManager[Pool]]
"""Gives workers for so many tasks."""


def prepare(settings: PrepareSettings, progress: bool = True) -> Manifest:
    """Prepare the folder, go on with it, or find it complete; its manifest.

    ConfigError when the folder holds something else; DataError for an unreadable input, with file and line, unless
    such are skipped; LaunchError when the disk or the memory does not suffice, or there are no ranks to work.
    """
    if settings.executor == "mpi":
        return on_ranks(lambda pool: _prepare(settings, progress, lambda _: nullcontext(pool)))
    workers = settings.workers or len(os.sched_getaffinity(0))
    return _prepare(settings, progress, lambda tasks: processes(min(workers, tasks)))


def _prepare(settings: PrepareSettings, progress: bool, start: Start) -> Manifest:
    faults = Faults()
    on_fault = faults if settings.on_error == "skip" else stop
    files = find_files(settings.inputs, on_fault)
    vocabulary = load_vocabulary(settings.vocabulary)
    identity = _identify(settings, files, vocabulary)
    folder = _claim(settings.out, identity, settings.overwrite)
    if (folder / MANIFEST).exists():
        manifest, state = _complete(folder), "is complete already"
    else:
        works = _divide(settings, files, identity, on_fault)
        _check_space(folder, works)
        try:
            with start(len(works)) as pool:
                receipts = _run(settings, works, pool, progress)
        finally:
            _remove_temporaries(folder)
        manifest, state = _finish(settings, identity, vocabulary, receipts, faults), "is complete"
    if progress:
        documents, tokens = manifest.total("documents"), manifest.total("tokens")
        Console(stderr=True, soft_wrap=True).print(f"{folder} {state}: {documents:,} documents, {tokens:,} tokens")
    return manifest


# ----------------------------------------------------------------------------------------------------------- the folder


def _identify(settings: PrepareSettings, files: Sequence[Path], vocabulary: Vocabulary) -> Identity:
    segmenter = make_segmenter(settings.segmenter, settings.user_dictionary)
    return Identity(
        format=FORMAT,
        inputs=settings.inputs,
        files=hashlib.sha256(repr([stamp(path) for path in files]).encode()).hexdigest(),
        tokenizer=TokenizerEntry(
            kind="bert-wordpiece",
            lowercase=settings.lowercase,
            vocabulary_size=len(vocabulary),
            vocabulary_sha256=vocabulary.sha256,
        ),
        segmenter=SegmenterEntry(
            name=segmenter.name, version=segmenter.version, dictionary_sha256=segmenter.dictionary_sha256
        ),
        normalisation=NORMALISATION,
        separation=settings.separation,
        field=settings.field,
        heldout=settings.heldout,
        clean=settings.clean,
        deduplicate=settings.deduplicate,
    )


def _claim(folder: Path, identity: Identity, overwrite: bool) -> Path:
    """Make the folder ours.

    1. An unused folder is marked with the identity; 2. the same identity goes on; 3. another one, or a manifest without
    any, is replaced if `overwrite`, else refused.
    """
    make_folder(folder / RECEIPTS)
    _remove_temporaries(folder)
    before = _read_identity(folder)
    if before == identity:
        return folder
    if before is not None or (folder / MANIFEST).exists():
        if not overwrite:
            names = ", ".join(identity.differences(before)) if before else f"it has no {IDENTITY}"
            raise ConfigError(
                f"{folder} was prepared in another way (different: {names}); choose another folder, or replace it "
                "with --overwrite"
            )
        _clear(folder)
    write_atomically(folder / IDENTITY, identity.model_dump_json(indent=1))
    return folder


def _read_identity(folder: Path) -> Identity | None:
    try:
        return Identity.model_validate_json((folder / IDENTITY).read_bytes())
    except (OSError, ValidationError):
        return None


def _clear(folder: Path) -> None:
    """Remove what a preparation wrote, the manifest first: without it the folder is not taken for complete."""
    for path in (folder / MANIFEST, *_shards_in(folder), *(folder / RECEIPTS).glob("*.json"), folder / IDENTITY):
        path.unlink(missing_ok=True)


def _remove_temporaries(folder: Path) -> None:
    """Remove the half-written files of a process that was killed."""
    for path in chain(folder.glob(".*.tmp"), (folder / RECEIPTS).glob(".*.tmp")):
        path.unlink(missing_ok=True)


def _shards_in(folder: Path) -> Iterable[Path]:
    return chain(folder.glob("train-*.arrow"), folder.glob("heldout-*.arrow"))


def _complete(folder: Path) -> Manifest:
    """The manifest of a folder that has one; DataError when shards are missing."""
    manifest = read_manifest(folder)
    check_sizes(folder, manifest.shards)
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    return manifest


# ------------------------------------------------------------------------------------------------------------- the work


def _divide(settings: PrepareSettings, files: Sequence[Path], identity: Identity, on_fault: OnFault) -> list[Work]:
    """Tasks in the order of the input; small files share one."""
    job = Job(
        folder=settings.out,
        vocabulary=settings.vocabulary,
        lowercase=settings.lowercase,
        segmenter=settings.segmenter,
        user_dictionary=settings.user_dictionary,
        separation=settings.separation,
        field=settings.field,
        clean=settings.clean,
        on_error=settings.on_error,
        identity=identity.digest,
    )
    size = min(max(sum(map(text_size, files)) // _TASKS, _SMALLEST_TASK), _LARGEST_TASK)
    pieces = chain.from_iterable(cut(path, size, settings.separation, on_fault) for path in files)
    return [Work(job, number, group) for number, group in enumerate(_group(pieces, size))]


def _group(pieces: Iterable[Piece], size: int) -> Iterator[tuple[Piece, ...]]:
    """Consecutive pieces together, up to `size` bytes of text."""
    group: list[Piece] = []
    filled = 0
    for piece in pieces:
        if group and filled + piece.size > size:
            yield tuple(group)
            group, filled = [], 0
        group.append(piece)
        filled += piece.size
    if group:
        yield tuple(group)


def _check_space(folder: Path, works: Sequence[Work]) -> None:
    there = sum(path.stat().st_size for path in _shards_in(folder))
    needed = int(sum(work.size for work in works) * _BYTES_PER_BYTE) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LaunchError(
            f"the shards need about {needed / 1e9:,.1f} GB and the disk of {folder} has {free / 1e9:,.1f} GB free; "
            "free space or choose another folder: what is finished stays"
        )


def _run(settings: PrepareSettings, works: Sequence[Work], pool: Pool, progress: bool) -> list[Receipt]:
    """Survey if asked, encode, and encode again when the bound had to move for both splits to have a document."""

    def run(label: str, function: Callable[[Work], T], works: Sequence[Work]) -> list[T]:
        with bar(label, sum(work.size for work in works), pool.gauge, shown=progress):
            return pool.run(function, works)

    if settings.deduplicate:
        copies = later_copies(run("survey", survey, works))
        works = [replace(work, copies=frozenset(part.tolist())) for work, part in zip(works, copies, strict=True)]
    bound = int(settings.heldout * KEYS)
    receipts = run("prepare", encode, [replace(work, heldout_below=bound) for work in works])
    settled = settle(
        bound, min((one.lowest for one in receipts), default=0), max((one.highest for one in receipts), default=0)
    )
    if settled != bound:
        receipts = run("prepare", encode, [replace(work, heldout_below=settled) for work in works])
    return receipts


def settle(bound: int, lowest: int, highest: int) -> int:
    """The bound nearest to the given one that leaves documents on both sides, their keys being lowest to highest.

    0, which holds nothing out, when that was asked for or when there is no second document.
    """
    return min(max(bound, lowest + 1), highest) if bound and lowest < highest else 0


def _finish(
    settings: PrepareSettings,
    identity: Identity,
    vocabulary: Vocabulary,
    receipts: Sequence[Receipt],
    before: Faults,
) -> Manifest:
    """Write all that is written once; the manifest last."""
    folder = settings.out
    shards = tuple(shard for receipt in receipts for shard in receipt.shards)
    report = make_report(receipts, before)
    if not shards:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.losses) or "only white space"
        raise DataError(f"no document is left of {', '.join(settings.inputs)} ({reasons}); give more text")
    manifest = Manifest(
        format=identity.format,
        tokenizer=identity.tokenizer,
        segmenter=identity.segmenter,
        normalisation=identity.normalisation,
        heldout=settings.heldout,
        sources=settings.inputs,
        shards=shards,
    )
    for stray in {*_shards_in(folder)} - {folder / shard.name for shard in shards}:
        stray.unlink()  # of the round before the bound moved
    write_atomically(folder / VOCABULARY, vocabulary.data)
    write_atomically(folder / REPORT, report.model_dump_json(indent=1) + "\n")
    write_manifest(folder, manifest)
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    if report.faults:
        print(summary(report, folder / REPORT), file=sys.stderr)  # noqa: T201 - also without a progress bar
    return manifest
