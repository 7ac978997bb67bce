"""A second home for checkpoints: each one that was committed is copied to a store, and a run can go on from there.

    s3://bucket/runs/first/recipe.toml …                 what the run is; written at its start, which proves the store
    s3://bucket/runs/first/step-00000120/manifest.json   after all the other files of the checkpoint

A thread of rank 0 copies; training never waits for it, until the end of the run for the last copy. Who copies slower
than the run saves has the newest copied next and passes over those between, but never one that `train.keep_every`
keeps. A copy that fails after the tries of remote.py is told and counted, and the next checkpoint's is tried anew.
Nothing is ever removed from the store: a bucket's own rules for old objects do that, and a run needs no right to
delete.

Where the run's folder has no checkpoint that verifies, the newest of the store is brought here, by rank 0, and judged
by the same hashes; a file that is larger than its manifest says is not brought at all.
"""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from nezha_ds.errors import ConfigError, DataError, NezhaError
from nezha_ds.files import make_folder, unwritable
from nezha_ds.observe.events import Copy
from nezha_ds.remote import BLOCK, NotThereError, RemoteFile, child, is_remote, list_files, open_file, shown, upload
from nezha_ds.train.checkpoint import (
    LARGEST_JSON,
    MANIFEST,
    Found,
    damage,
    find_sound,
    read_contents,
    remove,
    step_of,
)
from nezha_ds.train.ranks import Ranks

log = logging.getLogger(__name__)


class Copier:
    """Copies checkpoints one after another, in a thread that begins with the first."""

    def __init__(self, target: str, keep_every: int = 0) -> None:
        self._target, self._keep_every = target, keep_every
        self._changed = threading.Condition()
        self._waiting: list[Path] = []
        self._current: Path | None = None
        self._told: list[Copy] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, folder: Path) -> None:
        """Copy this one next, instead of any that still waits."""
        with self._changed:
            kept = [each for each in self._waiting if self._keep_every and _step(each) % self._keep_every == 0]
            for passed_over in self._waiting:
                if passed_over not in kept:
                    log.warning("%s is not copied to %s: a newer one is", passed_over.name, shown(self._target))
            self._waiting = [*kept, folder]
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
                self._thread.start()

    def in_use(self) -> set[Path]:
        """Those that are not to be removed yet."""
        with self._changed:
            return {*self._waiting, *([self._current] if self._current else [])}

    def take_told(self) -> list[Copy]:
        """What came of the copies since the last call."""
        with self._changed:
            told, self._told = self._told, []
            return told

    def close(self) -> None:
        """Wait until nothing waits; no more can be submitted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    def _work(self) -> None:
        while (folder := self._next()) is not None:
            started, size, ok = time.perf_counter(), 0, False
            try:
                size, ok = copy(folder, child(self._target, folder.name)), True
            except (NezhaError, OSError, ValidationError) as error:
                log.error("%s is not copied: %s", folder.name, error)
            event = Copy(time=time.time(), step=_step(folder), ok=ok, seconds=time.perf_counter() - started, bytes=size)
            with self._changed:
                self._current = None
                self._told.append(event)

    def _next(self) -> Path | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            self._current = self._waiting.pop(0) if self._waiting else None
            return self._current


def copy(folder: Path, uri: str) -> int:
    """Copy a checkpoint, its manifest last; its bytes. DataError when the store does not take it."""
    contents = read_contents(folder)
    for name in [*contents.files, MANIFEST]:
        upload(folder / name, child(uri, name))
    return sum(entry.bytes for entry in contents.files.values())


def check_uri(target: str) -> None:
    """ConfigError when `run.copy_to` is neither empty nor a URI."""
    if target and not is_remote(target):
        raise ConfigError(f"run.copy_to = {target!r} is no URI; give one such as s3://bucket/runs/first")


def open_copier(target: str, files: Sequence[Path], keep_every: int, fresh: bool, ranks: Ranks) -> Copier | None:
    """Rank 0's copier, where there is a target; collective. The store first gets the files that say what the run is.

    DataError on every rank when it refuses them while nothing is lost yet; in a run that goes on that is only told.
    """
    if not target:
        return None

    def try_it() -> None:
        try:
            for path in files:
                upload(path, child(target, path.name))
        except DataError as error:
            if fresh:
                raise
            log.error("%s; checkpoints may stay without a copy", error)

    ranks.on_main(try_it)
    return Copier(target, keep_every) if ranks.world.is_main else None


def _step(folder: Path) -> int:
    return step_of(folder.name) or 0


# --------------------------------------------------------------------------------------------------------- the way back


def find_anywhere(root: Path, target: str) -> Found:
    """The newest checkpoint that verifies in the folder, or else in the store, brought into the folder first."""
    found = find_sound(root)
    if found.folder is not None or not target:
        return found
    problems = list(found.passed_over)
    for name, files in _copies(target):
        log.info("bringing %s from %s", name, shown(target))
        try:
            problem = _bring(root, name, files)
        except OSError as error:
            raise unwritable(root, error) from None
        if not problem:
            return Found(root / name, tuple(problems))
        log.warning("copy %s; trying the one before it", problem)
        problems.append(f"{shown(target)}: {problem}")
    return Found(None, tuple(problems))


def _copies(target: str) -> list[tuple[str, dict[str, RemoteFile]]]:
    """The checkpoints of a store, newest first: their names and their files."""
    try:
        listed = list_files(target)
    except NotThereError:
        return []
    copies: dict[str, dict[str, RemoteFile]] = {}
    for file in listed:
        parts = file.uri.partition("?")[0].split("/")
        if len(parts) > 1 and step_of(parts[-2]) is not None:
            copies.setdefault(parts[-2], {})[parts[-1]] = file
    # One without a manifest is on its way, or never came whole.
    whole = {name: files for name, files in copies.items() if MANIFEST in files}
    return sorted(whole.items(), key=lambda item: step_of(item[0]) or 0, reverse=True)


def _bring(root: Path, name: str, files: dict[str, RemoteFile]) -> str:
    """Download a copy and put it under its name if it is whole; what is wrong with it otherwise."""
    final = root / name
    folder = make_folder(root) / f".{name}.tmp"
    remove(folder)
    folder.mkdir()
    if not _download(files[MANIFEST], folder / MANIFEST, LARGEST_JSON):
        return f"{name}/{MANIFEST} is larger than {LARGEST_JSON:,} bytes"
    try:
        contents = read_contents(folder)
    except (OSError, ValidationError):
        return f"{name} has no readable {MANIFEST}"
    for file, entry in contents.files.items():
        if Path(file).name != file or file not in files or files[file].size != entry.bytes:
            return f"{name}/{file} is missing or cut short"
        _download(files[file], folder / file, entry.bytes)
    if problem := damage(folder):
        return problem.replace(folder.name, name)
    remove(final)
    folder.replace(final)
    return ""


def _download(file: RemoteFile, path: Path, limit: int) -> bool:
    """Whether the file has no more bytes than the limit; no more are brought."""
    with open_file(file.uri) as source, path.open("wb") as sink:
        while block := source.read(min(BLOCK, limit - sink.tell())):
            sink.write(block)
        return not source.read(1)
