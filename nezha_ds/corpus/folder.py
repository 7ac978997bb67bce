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
from nezha_ds.corpus.clean import CleanSettings
from nezha_ds.corpus.encode import RECEIPTS
from nezha_ds.corpus.inputs import stamp
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.sources import Separation
from nezha_ds.errors import ConfigError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.shards import FORMAT, MANIFEST, Manifest, SegmenterEntry, TokenizerEntry, check_folder, read_manifest
from nezha_ds.text.normalize import NORMALISATION
from nezha_ds.text.segment import make_segmenter
from nezha_ds.text.vocab import Vocabulary

IDENTITY = "prepare.json"


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


def identify(settings: PrepareSettings, files: Sequence[Path], vocabulary: Vocabulary) -> Identity:
    """What the bytes of the folder will depend on."""
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


def claim(folder: Path, identity: Identity, overwrite: bool) -> Path:
    """Make the folder ours.

    1. An unused folder is marked with the identity; 2. the same identity goes on; 3. another one, or a manifest without
    any, is replaced if `overwrite`, else refused.
    """
    make_folder(folder / RECEIPTS)
    remove_temporaries(folder)
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
        clear(folder)
    write_atomically(folder / IDENTITY, identity.model_dump_json(indent=1))
    return folder


def _read_identity(folder: Path) -> Identity | None:
    try:
        return Identity.model_validate_json((folder / IDENTITY).read_bytes())
    except (OSError, ValidationError):
        return None


def clear(folder: Path) -> None:
    """Remove what a preparation wrote, the manifest first: without it the folder is not taken for complete."""
    for path in (folder / MANIFEST, *shards_in(folder), *(folder / RECEIPTS).glob("*.json"), folder / IDENTITY):
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove the half-written files of a process that was killed."""
    for path in chain(folder.glob(".*.tmp"), (folder / RECEIPTS).glob(".*.tmp")):
        path.unlink(missing_ok=True)


def shards_in(folder: Path) -> Iterable[Path]:
    """All shards that lie there, of this preparation or an earlier one."""
    return chain(folder.glob("train-*.arrow"), folder.glob("heldout-*.arrow"))


def complete(folder: Path) -> Manifest:
    """The manifest of a folder that has one; DataError when shards are missing, or others are there."""
    manifest = read_manifest(folder)
    check_folder(folder, manifest)
    shutil.rmtree(folder / RECEIPTS, ignore_errors=True)
    return manifest
