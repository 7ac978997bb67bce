"""Where a prepared folder lies: on this machine, or behind a URI with its shards cached on this node.

    shelf = open_shelf("s3://bucket/prepared", cache="/scratch/cache", limit=64e9)
    manifest = read_manifest(shelf.folder)
    columns = shelf.open_shard(manifest.shards[0], manifest.tokenizer.vocabulary_size)

A shelf always has a folder of this machine with manifest, vocabulary and plans; only shards may have to come first.
They are fetched ahead as far as one knows what comes next: what `expect` was told, or else the manifest's order.
"""

import logging
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from nezha_ds.cache import Ahead, Cache, Item, Statistics
from nezha_ds.errors import DataError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.remote import NotThereError, child, is_remote, list_files, read_bytes, shown
from nezha_ds.shards import (
    MANIFEST,
    Columns,
    Manifest,
    ShardEntry,
    Verify,
    check_folder,
    open_shard,
    parse_manifest,
)
from nezha_ds.text.kinds import kind_of

LIMIT = 64_000_000_000
"""Bytes of shards that the cache keeps where nobody says otherwise."""
READ_AHEAD = 8
"""Shards that are fetched ahead in the manifest's order."""

_log = logging.getLogger(__name__)


class Shelf:
    """A prepared folder on this machine."""

    limit: int | None = None
    """Bytes of shards that the node may keep; None where they are kept anyway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Holds manifest, vocabulary and plans."""
        self.statistics = Statistics()

    def open_shard(self, entry: ShardEntry, vocabulary_size: int, verify: Verify = "hashes") -> Columns:
        """As `shards.open_shard`."""
        return open_shard(self.folder, entry, vocabulary_size, verify)

    def check(self, manifest: Manifest) -> None:
        """Every shard is there with the size that the manifest says; DataError names the first that is not."""
        check_folder(self.folder, manifest)

    def expect(self, entries: Sequence[ShardEntry]) -> None:
        """Which shards come next, the most urgent first."""

    def bring(self, name: str) -> None:
        """Have a small file in the folder, if the store has it."""

    def close(self) -> None:
        """Stop fetching ahead. Columns that were handed out stay as they are."""


class RemoteShelf(Shelf):
    """A prepared folder behind a URI."""

    def __init__(self, uri: str, cache: Path, limit: int) -> None:
        data = _read_manifest(uri)
        manifest = parse_manifest(data, shown(child(uri, MANIFEST)))
        super().__init__(make_folder(cache / manifest.fingerprint[:24]))
        self.limit = limit
        self._uri = uri
        parts = (manifest.of("train"), manifest.of("heldout"))
        self._from = {entry.name: part[at : at + 1 + READ_AHEAD] for part in parts for at, entry in enumerate(part)}
        self._shards = make_folder(self.folder / "shards")
        self._cache = Cache(cache, limit)
        self._ahead = Ahead(self._cache)
        self._told = False
        self.statistics = self._cache.statistics
        _write_if_other(self.folder / MANIFEST, data)
        vocabulary = kind_of(manifest.tokenizer.kind, shown(child(uri, MANIFEST))).file
        _write_if_other(self.folder / vocabulary, read_bytes(child(uri, vocabulary)))

    def open_shard(self, entry: ShardEntry, vocabulary_size: int, verify: Verify = "hashes") -> Columns:
        """As `shards.open_shard`, once the shard is here. A cached file that is damaged is downloaded again."""
        if not self._told:
            self._ahead.want([self._item(coming) for coming in self._from[entry.name]])
        columns = self._open(entry, vocabulary_size, verify)
        self._ahead.release(self._shards / entry.name)
        return columns

    def check(self, manifest: Manifest) -> None:
        """As of a folder, by a listing: one request for a thousand shards."""
        sizes = {file.uri: file.size for file in list_files(self._uri)}
        for entry in manifest.shards:
            uri = child(self._uri, entry.name)
            size = sizes.get(uri)
            if size != entry.bytes:
                state = "is missing" if size is None else f"has {size:,} bytes instead of {entry.bytes:,}"
                raise DataError(f"shard {shown(uri)} {state}; copy it to the store again, or prepare again")

    def expect(self, entries: Sequence[ShardEntry]) -> None:
        """Fetch these ahead, and nothing else."""
        self._told = True
        self._ahead.want([self._item(entry) for entry in entries])

    def bring(self, name: str) -> None:
        """Copy a small file into the folder; nothing where the store has none."""
        try:
            data = read_bytes(child(self._uri, name))
        except NotThereError:
            return
        make_folder((self.folder / name).parent)
        write_atomically(self.folder / name, data)

    def close(self) -> None:
        """Stop fetching ahead and let go of what was fetched."""
        self._ahead.close()
        self._cache.tell()

    def _item(self, entry: ShardEntry) -> Item:
        return Item(child(self._uri, entry.name), self._shards / entry.name, entry.bytes, entry.sha256)

    def _open(self, entry: ShardEntry, vocabulary_size: int, verify: Verify) -> Columns:
        item = self._item(entry)
        held = self._cache.fetch(item)
        assert held is not None
        try:
            columns = open_shard(self._shards, entry, vocabulary_size, verify)
        except DataError as error:
            _log.warning("%s; it is only a copy, and comes again", error)
            self._cache.discard(item, held)
            held = self._cache.fetch(item)
            assert held is not None
            columns = open_shard(self._shards, entry, vocabulary_size, verify)
        # In use as long as its tokens are: the cache does not remove it before.
        weakref.finalize(columns.tokens, os.close, held)
        return columns


def open_shelf(location: str, cache: str = "", limit: int = LIMIT) -> Shelf:
    """The shelf of a folder or a URI. `cache` is the node's folder for what comes from afar, "" for the default.

    DataError when a URI holds no prepared folder; a path is looked into by who reads it.
    """
    if not is_remote(location):
        return Shelf(Path(location))
    return RemoteShelf(location, Path(cache) if cache else default_cache(), limit)


def default_cache() -> Path:
    """In the temporary folder (TMPDIR), which schedulers set to a node's own disk."""
    return Path(tempfile.gettempdir()) / f"nezha-ds-{os.getuid()}"


def as_shelf(folder: Path | Shelf) -> Shelf:
    """A path as a shelf on this machine."""
    return folder if isinstance(folder, Shelf) else Shelf(folder)


def _read_manifest(uri: str) -> bytes:
    try:
        return read_bytes(child(uri, MANIFEST))
    except NotThereError:
        raise DataError(
            f"{shown(uri)} has no {MANIFEST}: not a prepared folder, or not all of it; run `nezha-ds prepare INPUT "
            f"--out DIR` and `aws s3 sync DIR {shown(uri)}`"
        ) from None


def _write_if_other(path: Path, data: bytes) -> None:
    # Ranks that start together write the same bytes.
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, data)
