"""Text in, a folder of shards out: the same bytes from one process or many, in one go or after any number of crashes.

1. The input is divided into tasks of 4 to 80 MB of text, each of one source, by the files alone (`inputs.cut`).
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from nezha_ds.corpus.folder import (
    Identity,
    check_weights,
    claim,
    complete,
    identify,
    is_complete,
    remove_temporaries,
    shards_in,
)
from nezha_ds.corpus.inputs import cut_all, find_files, text_size
from nezha_ds.corpus.location import Location
from nezha_ds.corpus.lock import alone_in
from nezha_ds.corpus.progress import watched
from nezha_ds.corpus.quality import one_in
from nezha_ds.corpus.report import REPORT, SourceReport, folder_report, make_report, show_report, summary
from nezha_ds.corpus.settings import SOURCE, PrepareSettings
from nezha_ds.corpus.sources import Piece, Source
from nezha_ds.errors import DataError, LaunchError
from nezha_ds.files import write_atomically
from nezha_ds.shards import (
    MANIFEST,
    SHARD_BYTES,
    Manifest,
    write_manifest,
)
from nezha_ds.text.kinds import KINDS
from nezha_ds.text.vocab import Vocabulary

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
    return with_workers(settings, settings.out / RECEIPTS, lambda start: _prepare(settings, progress, start))


def with_workers(settings: PrepareSettings, exchange: Path, main: Callable[[Start], T]) -> T:
    """The result of `main`, called with a way to start the workers that the settings ask for; processes leave large
    results in the folder `exchange`.
    """
    if settings.executor == "mpi":
        return on_ranks(lambda pool: main(lambda _: nullcontext(pool)))
    workers = settings.workers or len(os.sched_getaffinity(0))
    return main(lambda tasks: processes(min(workers, tasks), exchange))


def _prepare(settings: PrepareSettings, progress: bool, start: Start) -> Manifest:
    sources = settings.all_sources()
    faults = {source.name: Faults() for source in sources}
    on_fault: Mapping[str, OnFault] = faults if settings.on_error == "skip" else dict.fromkeys(faults, stop)
    with _status("listing the inputs", progress):
        files = {source: find_files(source.inputs, on_fault[source.name]) for source in sources}
    vocabulary = KINDS[settings.tokenizer].load(settings.vocabulary)
    identity = identify(settings, [*chain.from_iterable(files.values())], vocabulary)
    folder = settings.out
    with nullcontext() if is_complete(folder, identity) else alone_in(folder):
        claim(folder, identity, settings.overwrite)
        if (folder / MANIFEST).exists():
            manifest, state = complete(folder, identity), "is complete already"
        else:
            with _status("dividing the inputs", progress):
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


def _status(text: str, shown: bool) -> AbstractContextManager[object]:
    """What a terminal shows while requests are made to a store, seconds for a thousand files; else nothing."""
    return Console(stderr=True, quiet=not shown).status(text)


def divide(settings: PrepareSettings, on_fault: OnFault) -> list[Work]:
    """The tasks of a preparation, for who wants its texts and no shards."""
    files = {source: find_files(source.inputs, on_fault) for source in settings.all_sources()}
    every = [*chain.from_iterable(files.values())]
    identity = identify(settings, every, KINDS[settings.tokenizer].load(None))
    return _divide(settings, files, identity, {source.name: on_fault for source in files})


def _divide(
    settings: PrepareSettings,
    files: Mapping[Source, Sequence[Location]],
    identity: Identity,
    on_fault: Mapping[str, OnFault],
) -> list[Work]:
    """Tasks in the order of the sources and their inputs; small files of a source share one."""
    total = sum(text_size(file) for of_source in files.values() for file in of_source)
    job = Job(
        folder=settings.out,
        tokenizer=settings.tokenizer,
        vocabulary=settings.vocabulary,
        lowercase=identity.tokenizer.lowercase,
        segmenter=settings.segmenter,
        user_dictionary=settings.user_dictionary,
        simplify=settings.simplify,
        clean=settings.clean,
        sketch=settings.near_values if settings.near_duplicates else 0,
        measure_one_in=one_in(total),
        on_error=settings.on_error,
        identity=identity.digest,
    )
    size = min(max(total // _TASKS, _SMALLEST_TASK), _LARGEST_TASK)
    groups = [
        (source, group)
        for source, of_source in files.items()
        for group in _group(cut_all(of_source, size, source.separation, on_fault[source.name]), size)
    ]
    return [Work(job, number, source, group) for number, (source, group) in enumerate(groups)]


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
    before: Mapping[str, Faults],
) -> Manifest:
    """Write all that is written once; the manifest last."""
    folder = settings.out
    shards = tuple(shard for receipt in receipts for shard in receipt.shards)
    report = make_report(receipts, before)
    for source in identity.sources:
        if not report.sources[source.name].documents:
            raise _nothing_left(source, report.sources[source.name])
    check_weights(identity, shards)
    manifest = Manifest(
        format=identity.format,
        tokenizer=identity.tokenizer,
        segmenter=identity.segmenter,
        normalisation=identity.normalisation,
        heldout=settings.heldout,
        sources=identity.source_entries,
        shards=shards,
    )
    for stray in {*shards_in(folder)} - {folder / shard.name for shard in shards}:
        stray.unlink()  # of the round before the bound moved
    write_atomically(folder / KINDS[settings.tokenizer].file, vocabulary.data)
    write_atomically(folder / REPORT, report.model_dump_json(indent=1) + "\n")
    write_manifest(folder, manifest)
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    if report.faults:
        print(summary(report, folder / REPORT), file=sys.stderr)  # noqa: T201 - also without a progress bar
    return manifest


def _nothing_left(source: Source, report: SourceReport) -> DataError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.losses) or "only white space"
    inputs = ", ".join(source.inputs)
    if source.name == SOURCE:
        return DataError(f"no document is left of {inputs} ({reasons}); give more text")
    return DataError(
        f"no document is left of source {source.name!r}, {inputs} ({reasons}); give it more text, or leave it out"
    )
