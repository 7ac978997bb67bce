"""Checkpoints: a folder per step that is there whole or not at all, and that any number of ranks can go on from.

    step-00000120/
      config.json model.safetensors vocab.txt …   fp32 weights under Hugging Face's names: the folder opens as a model
      moments-00000-of-00002.safetensors          `exp_avg/NAME@OFFSET`: each rank's slices of the optimizer's moments
      state.json                                  step, samples, counters, seed, fingerprint of the data, model, recipe
      manifest.json                               size and SHA-256 of every file, written last

This file says what a checkpoint is, when it is whole, and which ones stay; snapshot.py writes it, saver.py while the
training goes on, restore.py reads it, copies.py keeps a second one in a store. Only safetensors and JSON are read,
nothing that could run code; of JSON no more than LARGEST_JSON; and no file that the manifest does not name, or that is
a link.

Where a run goes on from, in this order:

1. The newest checkpoint that verifies: every file of the manifest has its size and hash.
2. If that one does not, the next older, which the log says aloud and the metrics count.
3. If none here verifies, or there are none: the newest in `run.copy_to` that verifies, brought here first.
4. If there are checkpoints, here or there, and none verifies: CheckpointError. A run never starts over in silence.
5. If there are none: the beginning.

Folders whose names begin with a dot are on their way, in or out, and never count.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nezha_ds.config import Settings
from nezha_ds.errors import CheckpointError
from nezha_ds.files import sha256_of
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.hf import HEADS, WEIGHTS
from nezha_ds.train.ds_config import DeepSpeedConfig
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import Recipe

FORMAT = 1
STATE, MANIFEST, MOMENTS = "state.json", "manifest.json", "moments-"
LARGEST_JSON = 16 << 20
"""Bytes of a manifest or state that are read at most: a manifest of 100,000 ranks."""

log = logging.getLogger(__name__)


class Parent(Settings):
    """The checkpoint of another run from which a run began."""

    run: str
    """What was asked for, as an absolute path: that run's folder, or the checkpoint's."""
    checkpoint: str
    """The name of its folder."""
    step: int
    samples: int


class State(Settings):
    """What a checkpoint says besides tensors."""

    format: int = FORMAT
    step: int
    """Optimizer steps done."""
    samples: int
    """Samples consumed: the next sample number of the order."""
    seed: int
    fingerprint: str
    """Of the data: its manifest's, or that of the mixture."""
    model: NezhaConfig
    counters: dict[str, Any]
    """Updates, skipped steps, schedule, loss scaler: `Engine.counters`."""
    recipe: dict[str, Any]
    """The resolved recipe and DeepSpeed JSON, for whoever asks where this came from."""
    parent: Parent | None = None
    """Where the run began, if not with weights of its own."""

    @classmethod
    def fresh(cls, recipe: Recipe, ds_config: DeepSpeedConfig, model: NezhaConfig, fingerprint: str) -> "State":
        """The beginning of a run."""
        return cls(
            step=0,
            samples=0,
            seed=recipe.train.seed,
            fingerprint=fingerprint,
            model=model,
            counters={},
            recipe={"recipe": recipe.model_dump(mode="json"), "deepspeed": ds_config.written},
        )


class FileEntry(Settings):
    """One file of a checkpoint."""

    bytes: int
    sha256: str


class Contents(Settings):
    """`manifest.json`."""

    format: int = FORMAT
    files: dict[str, FileEntry]


def folder_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:08}"


def step_of(name: str) -> int | None:
    """The step that a folder's name tells; None when it is no checkpoint's."""
    number = name.removeprefix("step-")
    return int(number) if name != number and number.isascii() and number.isdigit() else None


def candidates(root: Path) -> Iterator[Path]:
    """Checkpoint folders, newest first."""
    found = {path: step for path in root.glob("step-*") if (step := step_of(path.name)) is not None and path.is_dir()}
    yield from sorted(found, key=found.__getitem__, reverse=True)


# ----------------------------------------------------------------------------------------------------- when it is whole


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint's files, or an empty string."""
    try:
        contents = read_contents(folder)
    except (OSError, ValidationError):
        return f"{folder.name} has no readable {MANIFEST}"
    if contents.format != FORMAT:
        return f"{folder.name} has format {contents.format}, this version reads {FORMAT}"
    for name, entry in contents.files.items():
        path = folder / name
        if Path(name).name != name or name in ("", "..") or path.is_symlink():
            return f"{folder.name} names a file outside its folder: {name!r}"
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return f"{folder.name}/{name} is missing or cut short"
        if sha256_of(path) != entry.sha256:
            return f"{folder.name}/{name} is damaged"
    return "" if {STATE, WEIGHTS} <= contents.files.keys() else f"{folder.name}/{MANIFEST} names no model"


def read_contents(folder: Path) -> Contents:
    """The manifest of a checkpoint; OSError or ValidationError when it is not readable."""
    return Contents.model_validate_json(_read_json(folder / MANIFEST))


def read_state(folder: Path) -> State:
    """The state of a checkpoint; CheckpointError when it is not readable."""
    try:
        return State.model_validate_json(_read_json(folder / STATE))
    except OSError as error:
        raise CheckpointError(
            f"{folder / STATE} cannot be read ({error.strerror}); choose a checkpoint folder"
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"{folder / STATE}: {error.errors()[0]['msg']}; written by another version?") from None


def _read_json(path: Path) -> bytes:
    # A pipe would be waited for, a device read for ever, a link may lead anywhere.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(0, "no regular file")
    with path.open("rb") as file:
        data = file.read(LARGEST_JSON + 1)
    if len(data) > LARGEST_JSON:
        raise OSError(0, f"more than {LARGEST_JSON:,} bytes")
    return data


# ---------------------------------------------------------------------------------------------- which one to go on from


@dataclass(frozen=True)
class Found:
    """What was found to go on from."""

    folder: Path | None
    passed_over: tuple[str, ...] = ()
    """What is wrong with each newer one."""


def newest_sound(root: Path, ranks: Ranks) -> Path | None:
    """Where to go on from in this folder, by the order in this file's text; collective, verified by rank 0.

    None when there is no checkpoint. CheckpointError when there are some and none verifies.
    """
    return agree(root, ranks, lambda: find_sound(root)).folder


def find_sound(root: Path) -> Found:
    """The newest checkpoint of a folder that verifies; each one passed over is told."""
    problems: list[str] = []
    for folder in candidates(root):
        problem = damage(folder)
        if not problem:
            return Found(folder, tuple(problems))
        log.warning("checkpoint %s; trying the one before it", problem)
        problems.append(problem)
    return Found(None, tuple(problems))


def agree(root: Path, ranks: Ranks, find: Callable[[], Found]) -> Found:
    """What rank 0 finds for the checkpoints of `root`, on every rank; collective.

    CheckpointError when there are checkpoints and none verifies, or when a rank does not see the one found.
    """
    found = ranks.on_main(find)
    if found.folder is not None:
        seen = ranks.gather(_digest(found.folder / MANIFEST))
        if blind := [str(rank) for rank, digest in enumerate(seen) if digest != seen[0]]:
            raise CheckpointError(
                f"rank {', '.join(blind[:8])} does not find in {found.folder} what rank 0 finds there; "
                "let run.folder lie where every node sees the same files"
            )
    elif found.passed_over:
        raise CheckpointError(
            f"no checkpoint in {root} verifies ({'; '.join(found.passed_over)}); restore one from a copy, "
            f"or remove the folder to start over"
        )
    return found


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(_read_json(path)).hexdigest()
    except OSError:
        return ""


def check_belongs(state: State, run: State, samples: int) -> None:
    """CheckpointError when a checkpoint is of another model, data set, seed or batch than the run that wants it.

    `samples` are those that the run's own batches come to before the checkpoint's step.
    """
    heads = {name: getattr(run.model, name) for name in HEADS.values()}
    differences = {
        "[model]": state.model.model_copy(update=heads) != run.model,
        "objective.span, span_form or sop": any(getattr(state.model, name) != value for name, value in heads.items()),
        "data.shards or data.mixture": state.fingerprint != run.fingerprint,
        "train.seed": state.seed != run.seed,
        "train_batch_size or batch_warmup": state.samples != samples,
    }
    for name, differs in differences.items():
        if differs:
            raise CheckpointError(
                f"the checkpoint at step {state.step} was trained with another {name}; "
                f"set it back, or choose another run.folder"
            )


# ------------------------------------------------------------------------------------------------------ which ones stay


def prune(newest: Path, keep_last: int, keep_every: int = 0, in_use: Collection[Path] = ()) -> None:
    """Remove all but the `keep_last` newest checkpoints up to `newest`, which was verified, and what is left half-done.

    Those at multiples of `keep_every` steps stay, and those `in_use` stay for now.
    """
    step = step_of(newest.name)
    assert step is not None
    older = [folder for folder in candidates(newest.parent) if (step_of(folder.name) or 0) <= step]
    for old in older[keep_last:]:
        if old not in in_use and not (keep_every and (step_of(old.name) or 0) % keep_every == 0):
            # Renamed first, so that a crash in the middle leaves no half checkpoint under its name.
            doomed = old.with_name(f".{old.name}.old")
            old.replace(doomed)
            remove(doomed)


def remove_leftovers(root: Path) -> None:
    """Remove what an earlier attempt left on its way in or out."""
    for leftover in root.glob(".step-*"):
        remove(leftover)


def remove(folder: Path) -> None:
    """Remove a folder, or a link to one, as far as that is possible."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
