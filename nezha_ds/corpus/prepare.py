"""Text in, a folder of shards out: the same bytes from one process or many, in one go or after any number of crashes.

1. The input is divided into tasks of 4 to 80 MB of text, by the files alone (`sources.cut`).
2. With `deduplicate` or `near_duplicates`, a survey reads every task's document keys and sketches and names the later
   copies. A restart surveys again: reading, cleaning and sketching, a fifth of the time.
3. Each task writes its shards and then its receipt. A restart finds finished tasks by their receipts.
4. A document is held out when its key, a hash of its text, is under a bound, so copies share a side. When that leaves
   a side without any document, which happens to a small corpus, the bound moves just far enough and step 3 runs again:
   two different documents are enough for both sides; a single one is for training.
5. The vocabulary and the report are written, and last the manifest: a folder that has one is complete.

The same folder with anything else is refused unless told to overwrite (`folder`), and so is a second preparation in it
at the same time (`lock`).
About 10 MB/s of UTF-8 a core; tasks share nothing, so that processes add up, on one machine or, by MPI, on many that
share a file system.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from nezha_ds.corpus.dedup import KEYS, verdicts
from nezha_ds.corpus.encode import RECEIPTS, Job, Receipt, Work, encode, survey
from nezha_ds.corpus.executor import Pool, on_ranks, processes
from nezha_ds.corpus.faults import Faults, OnFault, stop
from nezha_ds.corpus.folder import Identity, claim, complete, identify, is_complete, remove_temporaries, shards_in
from nezha_ds.corpus.inputs import cut, find_files, text_size
from nezha_ds.corpus.lock import alone_in
from nezha_ds.corpus.progress import watched
from nezha_ds.corpus.quality import one_in
from nezha_ds.corpus.report import REPORT, folder_report, make_report, show_report, summary
from nezha_ds.corpus.settings import SOURCE, PrepareSettings
from nezha_ds.corpus.sources import Piece
from nezha_ds.errors import DataError, LaunchError
from nezha_ds.files import write_atomically
from nezha_ds.shards import (
    MANIFEST,
    SHARD_BYTES,
    VOCABULARY,
    Manifest,
    SourceEntry,
    write_manifest,
)
from nezha_ds.text.vocab import Vocabulary, load_vocabulary

T = TypeVar("T")

_SMALLEST_TASK = 4 << 20
_LARGEST_TASK = SHARD_BYTES * 5 // 4
"""Text whose shard is just under SHARD_BYTES: three bytes a Chinese character, 2.2 a token."""
_TASKS = 128
"""A corpus of ordinary size is divided into about so many, to keep many processes busy to the end."""
_BYTES_PER_BYTE = 0.75
"""Bytes of shards per byte of text."""

Start = Callable[[int], AbstractContextManager[Pool]]
"""Gives workers for so many tasks."""


def prepare(settings: PrepareSettings, progress: bool = True) -> Manifest:
    """Prepare the folder, go on with it, or find it complete; its manifest.

    ConfigError when the folder holds something else; DataError for an unreadable input, with file and line, unless
    such are skipped; LaunchError when the disk or the memory does not suffice, when another process is preparing the
    folder, or when there are no ranks to work.
    """
    if settings.executor == "mpi":
        return on_ranks(lambda pool: _prepare(settings, progress, lambda _: nullcontext(pool)))
    workers = settings.workers or len(os.sched_getaffinity(0))
    return _prepare(settings, progress, lambda tasks: processes(min(workers, tasks), settings.out / RECEIPTS))


def _prepare(settings: PrepareSettings, progress: bool, start: Start) -> Manifest:
    faults = Faults()
    on_fault = faults if settings.on_error == "skip" else stop
    files = find_files(settings.inputs, on_fault)
    vocabulary = load_vocabulary(settings.vocabulary)
    identity = identify(settings, files, vocabulary)
    folder = settings.out
    with nullcontext() if is_complete(folder, identity) else alone_in(folder):
        claim(folder, identity, settings.overwrite)
        if (folder / MANIFEST).exists():
            manifest, state = complete(folder), "is complete already"
        else:
            works = _divide(settings, files, identity, on_fault)
            _check_space(folder, works)
            try:
                with start(len(works)) as pool:
                    receipts = _run(settings, works, pool, progress)
            finally:
                remove_temporaries(folder)
            manifest, state = _finish(settings, identity, vocabulary, receipts, faults), "is complete"
    if progress:
        documents, tokens = manifest.total("documents"), manifest.total("tokens")
        console = Console(stderr=True, soft_wrap=True)
        if report := folder_report(folder):
            show_report(report, console)
        console.print(f"{folder} {state}: {documents:,} documents, {tokens:,} tokens")
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
        simplify=settings.simplify,
        clean=settings.clean,
        sketch=settings.near_values if settings.near_duplicates else 0,
        measure_one_in=one_in(total := sum(map(text_size, files))),
        on_error=settings.on_error,
        identity=identity.digest,
    )
    size = min(max(total // _TASKS, _SMALLEST_TASK), _LARGEST_TASK)
    pieces = chain.from_iterable(cut(path, size, settings.separation, on_fault) for path in files)
    return [Work(job, number, SOURCE, group) for number, group in enumerate(_group(pieces, size))]


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
    there = sum(path.stat().st_size for path in shards_in(folder))
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
        with watched(label, sum(work.size for work in works), pool.gauge.read, progress):
            return pool.run(function, works)

    if settings.deduplicate or settings.near_duplicates:
        found = verdicts(run("survey", survey, works), settings.deduplicate, settings.near_duplicates)
        works = [replace(work, verdicts=part) for work, part in zip(works, found, strict=True)]
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
        sources=(SourceEntry(name=SOURCE, weight=0, inputs=settings.inputs),),
        shards=shards,
    )
    for stray in {*shards_in(folder)} - {folder / shard.name for shard in shards}:
        stray.unlink()  # of the round before the bound moved
    write_atomically(folder / VOCABULARY, vocabulary.data)
    write_atomically(folder / REPORT, report.model_dump_json(indent=1) + "\n")
    write_manifest(folder, manifest)
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    if report.faults:
        print(summary(report, folder / REPORT), file=sys.stderr)  # noqa: T201 - also without a progress bar
    return manifest
