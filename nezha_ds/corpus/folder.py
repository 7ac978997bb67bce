"""The folder that a preparation fills: whose it is, whether it is complete, and what a killed process left in it.

`prepare.json` holds what the bytes depend on. The same folder with anything else is refused unless told to overwrite.
"""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from pydantic import ValidationError

from nezha_ds.config import Settings
from nezha_ds.corpus import near
from nezha_ds.corpus.clean import CleanSettings
from nezha_ds.corpus.encode import RECEIPTS
from nezha_ds.corpus.inputs import stamp
from nezha_ds.corpus.location import Location
from nezha_ds.corpus.settings import SOURCE, PrepareSettings
from nezha_ds.corpus.sources import Source
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.shards import (
    FORMAT,
    MANIFEST,
    Manifest,
    SegmenterEntry,
    ShardEntry,
    SourceEntry,
    TokenizerEntry,
    check_folder,
    read_manifest,
    write_manifest,
)
from nezha_ds.text.kinds import KINDS
from nezha_ds.text.normalize import NORMALISATION
from nezha_ds.text.segment import make_segmenter
from nezha_ds.text.simplify import make_simplifier
from nezha_ds.text.vocab import Vocabulary

IDENTITY = "prepare.json"


class Identity(Settings):
    """What the bytes of a prepared folder depend on."""

    format: int
    sources: tuple[Source, ...]
    files: str
    """A hash of every input file's path, size and time of change."""
    tokenizer: TokenizerEntry
    segmenter: SegmenterEntry
    normalisation: str
    heldout: float
    clean: CleanSettings
    deduplicate: bool
    near_duplicates: str
    """The threshold and what sketches are made by and of; empty when none are."""

    @property
    def digest(self) -> str:
        """What the shards depend on, as one hash."""
        return hashlib.sha256(self.without_weights().model_dump_json().encode()).hexdigest()

    @property
    def source_entries(self) -> tuple[SourceEntry, ...]:
        """What the manifest tells of the sources."""
        return tuple(SourceEntry(name=one.name, weight=one.weight, inputs=one.inputs) for one in self.sources)

    def without_weights(self) -> "Identity":
        """The same without what only the manifest depends on."""
        return self.model_copy(update={"sources": tuple(one.model_copy(update={"weight": 0}) for one in self.sources)})

    def differences(self, other: "Identity") -> list[str]:
        """The names of the settings that differ."""
        names = [name for name in Identity.model_fields if getattr(self, name) != getattr(other, name)]
        of_sources = _source_differences(self.sources, other.sources)
        return [*of_sources, *(name for name in names if name != "sources" or not of_sources)]


def _source_differences(some: Sequence[Source], others: Sequence[Source]) -> list[str]:
    """The names of the settings of sources that differ; none when only their order does."""
    mine, theirs = ({source.name: source for source in sources} for sources in (some, others))
    names = [name for name in dict.fromkeys([*mine, *theirs]) if mine.get(name) != theirs.get(name)]
    return [
        field if name == SOURCE else f"sources.{name}.{field}"
        for name in names
        for field in Source.model_fields
        if getattr(mine.get(name), field, None) != getattr(theirs.get(name), field, None)
    ]


def identify(settings: PrepareSettings, files: Sequence[Location], vocabulary: Vocabulary) -> Identity:
    """What the bytes of the folder will depend on."""
    segmenter = make_segmenter(settings.segmenter, settings.user_dictionary)
    simplifier = make_simplifier() if settings.simplify else None
    return Identity(
        format=FORMAT,
        sources=tuple(source.without_keys() for source in settings.all_sources()),
        files=hashlib.sha256(repr([stamp(path) for path in files]).encode()).hexdigest(),
        tokenizer=TokenizerEntry(
            kind=settings.tokenizer,
            lowercase=settings.lowercase and KINDS[settings.tokenizer].lowercases,
            vocabulary_size=len(vocabulary),
            vocabulary_sha256=vocabulary.sha256,
        ),
        segmenter=SegmenterEntry(
            name=segmenter.name, version=segmenter.version, dictionary_sha256=segmenter.dictionary_sha256
        ),
        normalisation=f"{NORMALISATION} {simplifier.name}" if simplifier else NORMALISATION,
        heldout=settings.heldout,
        clean=settings.clean,
        deduplicate=settings.deduplicate,
        near_duplicates=near.describe(settings.near_duplicates, settings.near_values),
    )


def is_complete(folder: Path, identity: Identity) -> bool:
    """Whether the folder holds this preparation to its end."""
    return (folder / MANIFEST).exists() and _read_identity(folder) == identity


def claim(folder: Path, identity: Identity, overwrite: bool) -> None:
    """Make the folder ours.

    1. What is complete is only read; 2. an unused folder is marked with the identity; 3. the same identity goes on;
    4. another one, or a manifest without any, is replaced if `overwrite`, else refused; where only weights differ,
    nothing but the manifest is.
    """
    if is_complete(folder, identity):
        return
    make_folder(folder / RECEIPTS)
    remove_temporaries(folder)
    before = _read_identity(folder)
    if before == identity:
        return
    if before is not None or (folder / MANIFEST).exists():
        if not overwrite:
            names = ", ".join(identity.differences(before)) if before else f"it has no {IDENTITY}"
            raise ConfigError(
                f"{folder} was prepared in another way (different: {names}); choose another folder, or replace it "
                "with --overwrite"
            )
        if before is None or before.without_weights() != identity.without_weights():
            clear(folder)
    write_atomically(folder / IDENTITY, identity.model_dump_json(indent=1))


def _read_identity(folder: Path) -> Identity | None:
    try:
        return Identity.model_validate_json((folder / IDENTITY).read_bytes())
    except (OSError, ValidationError):
        return None


def clear(folder: Path) -> None:
    """Remove what a preparation wrote, the manifest first: without it the folder is not taken for complete."""
    vocabularies = [folder / kind.file for kind in KINDS.values()]
    receipts = (folder / RECEIPTS).glob("*.json")
    for path in (folder / MANIFEST, *shards_in(folder), *receipts, *vocabularies, folder / IDENTITY):
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove the half-written files of a process that was killed."""
    for path in chain(folder.glob(".*.tmp"), (folder / RECEIPTS).glob(".*.tmp")):
        path.unlink(missing_ok=True)


def shards_in(folder: Path) -> Iterable[Path]:
    """All shards that lie there, of this preparation or an earlier one."""
    return chain(folder.glob("train-*.arrow"), folder.glob("heldout-*.arrow"))


def complete(folder: Path, identity: Identity) -> Manifest:
    """The manifest of a folder that has one, with the weights of today; DataError when shards are missing, or others
    are there.
    """
    manifest = read_manifest(folder)
    check_folder(folder, manifest)
    if manifest.sources != identity.source_entries:
        check_weights(identity, manifest.shards)
        manifest = manifest.model_copy(update={"sources": identity.source_entries})
        write_manifest(folder, manifest)
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    return manifest


def check_weights(identity: Identity, shards: Iterable[ShardEntry]) -> None:
    """DataError for a source that has a weight and no document to train on."""
    trained = {shard.source for shard in shards if shard.split == "train"}
    for source in identity.sources:
        if source.weight and source.name not in trained:
            raise DataError(
                f"every document of source {source.name!r} is held out, which leaves nothing to give its weight to; "
                "give it more text, or lower --heldout"
            )
