"""Checkpoints: a folder per step that is there whole or not at all, and that any number of ranks can go on from.

    step-00000120/
      config.json model.safetensors vocab.txt …   fp32 weights under Hugging Face's names: the folder opens as a model
      moments-00000-of-00002.safetensors          `exp_avg/NAME@OFFSET`: each rank's slices of the optimizer's moments
      state.json                                  step, samples, counters, seed, fingerprint of the data, model, recipe
      manifest.json                               size and SHA-256 of every file, written last

Written under a temporary name, synced by every rank, renamed when all are done. Moments carry the names and offsets of
model tensors, so ranks of another number, or another ZeRO stage, pick what they need. Only safetensors and JSON are
read: nothing that could run code.

Where a run goes on from, in this order:

1. The newest checkpoint that verifies: every file of the manifest has its size and hash.
2. If that one does not, the next older, which the log says aloud.
3. If there are checkpoints and none verifies: CheckpointError. A run never starts over in silence.
4. If there are none: the beginning.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nezha_ds.config import Settings
from nezha_ds.errors import CheckpointError, LaunchError
from nezha_ds.files import make_folder, sha256_of, sync_folder, unwritable, write_atomically
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.hf import HEADS, WEIGHTS, current_names, hf_name, save_folder
from nezha_ds.optim.slices import Slice
from nezha_ds.train.ds_config import DeepSpeedConfig
from nezha_ds.train.engine import Engine
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import Recipe

FORMAT = 1
STATE, MANIFEST = "state.json", "manifest.json"

log = logging.getLogger(__name__)


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


# ---------------------------------------------------------------------------------------------------------- writing


def save(root: Path, engine: Engine, state: State, files: Mapping[str, bytes], ranks: Ranks) -> Path:
    """Write the checkpoint of `state.step` under `root`; collective. `files` are the tokenizer's, for the model folder.

    LaunchError on every rank when any rank cannot write; the unfinished folder is removed then.
    """
    final = root / f"step-{state.step:08}"
    temporary = root / f".{final.name}.tmp"
    problem = _on_main(ranks, lambda: _begin(root, temporary))
    weights = gather_weights(engine)
    if not problem:
        problem = _attempt(lambda: _write_own(temporary, engine, state, files, weights))
    problems = [text for text in ranks.gather(problem) if text]
    if not problems:
        problems = [text for text in ranks.gather(_on_main(ranks, lambda: _commit(temporary, final))) if text]
    if problems:
        if ranks.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise unwritable(final, OSError(0, problems[0]))
    ranks.wait()
    return final


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and only behind a newest one that verifies."""
    newest_first = list(_candidates(root))
    if len(newest_first) > keep and not damage(newest_first[0]):
        for old in newest_first[keep:]:
            # Renamed first, so that a crash in the middle leaves no half checkpoint under its name.
            doomed = old.with_name(f".{old.name}.old")
            old.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


@torch.no_grad()
def gather_weights(engine: Engine) -> dict[str, Tensor]:
    """Every tensor of the model in fp32 on the CPU, put together from the ranks' slices; collective.

    Empty on all ranks but 0. Tensors that are not trained come from the model itself.
    """
    own: dict[str, list[Slice]] = {}
    for piece in engine.slices:
        own.setdefault(piece.name, []).append(piece)
    weights = {}
    for name, parameter in engine.module.named_parameters():
        whole = parameter.detach().float() if not parameter.requires_grad else torch.zeros_like(parameter).float()
        for piece in own.get(name, []):
            whole.view(-1).narrow(0, piece.offset, piece.numel).copy_(piece.of(piece.owner.detach()))
        if engine.partitioned and parameter.requires_grad:
            dist.reduce(whole, dst=0)
        if engine.world.is_main:
            weights[name] = whole.cpu()
    return weights


def _begin(root: Path, temporary: Path) -> None:
    make_folder(root)
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()


def _write_own(
    folder: Path, engine: Engine, state: State, files: Mapping[str, bytes], weights: dict[str, Tensor]
) -> None:
    world = engine.world
    if engine.partitioned or world.is_main:
        moments = {
            f"{key}/{piece.name}@{piece.offset}": tensor.detach().cpu().contiguous()
            for piece in engine.slices
            for key, tensor in engine.moments(piece).items()
        }
        count = world.world_size if engine.partitioned else 1
        path = folder / f"moments-{world.rank:05}-of-{count:05}.safetensors"
        save_file(moments, path)
        _sync(path)
    if world.is_main:
        save_folder({hf_name(name): tensor for name, tensor in weights.items()}, state.model, folder, files)
        write_atomically(folder / STATE, state.model_dump_json(indent=1))


def _commit(temporary: Path, final: Path) -> None:
    entries = {path.name: FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in _files(temporary)}
    write_atomically(temporary / MANIFEST, Contents(files=entries).model_dump_json(indent=1))
    if final.exists():
        shutil.rmtree(final)
    temporary.replace(final)
    sync_folder(final.parent)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _on_main(ranks: Ranks, action: Any) -> str:
    """Run an action on rank 0 only; what went wrong, on every rank."""
    return ranks.gather(_attempt(action) if ranks.world.is_main else "")[0]


def _attempt(action: Any) -> str:
    try:
        action()
    except (OSError, SafetensorError, LaunchError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


# ---------------------------------------------------------------------------------------------------------- reading


def newest_sound(root: Path, ranks: Ranks) -> Path | None:
    """Where to go on from, by the order in this file's text; collective, verified by rank 0.

    None when there is no checkpoint. CheckpointError when there are some and none verifies.
    """
    name, problems = ranks.gather(_newest_sound(root) if ranks.world.is_main else None)[0]
    if name is None and problems:
        raise CheckpointError(
            f"no checkpoint in {root} verifies ({'; '.join(problems)}); restore one from a copy, "
            f"or remove the folder to start over"
        )
    return root / name if name else None


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint's files, or an empty string."""
    try:
        contents = Contents.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return f"{folder.name} has no readable {MANIFEST}"
    if contents.format != FORMAT:
        return f"{folder.name} has format {contents.format}, this version reads {FORMAT}"
    for name, entry in contents.files.items():
        path = folder / name
        if path.parent != folder:
            return f"{folder.name} names a file outside its folder: {name!r}"
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return f"{folder.name}/{name} is missing or cut short"
        if sha256_of(path) != entry.sha256:
            return f"{folder.name}/{name} is damaged"
    return "" if {STATE, WEIGHTS} <= contents.files.keys() else f"{folder.name}/{MANIFEST} names no model"


def read_state(folder: Path) -> State:
    """The state of a checkpoint; CheckpointError when it is not readable."""
    try:
        return State.model_validate_json((folder / STATE).read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{folder / STATE} cannot be read ({error.strerror}); choose a checkpoint folder"
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"{folder / STATE}: {error.errors()[0]['msg']}; written by another version?") from None


def restore(folder: Path, engine: Engine, state: State) -> None:
    """Put weights, moments and counters of a verified checkpoint into an engine of any world size and ZeRO stage."""
    weights = current_names(load_file(folder / WEIGHTS))
    engine.load_weights({name: weights[hf_name(name)] for name, _ in engine.module.named_parameters()})
    engine.make_moments()
    stored = _index_moments(folder)
    for piece in engine.slices:
        for key, tensor in engine.moments(piece).items():
            _fill(tensor, piece, stored.get(f"{key}/{piece.name}", []), key)
    engine.restore_counters(state.counters, state.step)


def _candidates(root: Path) -> Iterator[Path]:
    """Checkpoint folders, newest first."""
    folders = [path for path in root.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    yield from sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def _newest_sound(root: Path) -> tuple[str | None, list[str]]:
    problems: list[str] = []
    for folder in _candidates(root):
        problem = damage(folder)
        if not problem:
            return folder.name, problems
        log.warning("checkpoint %s; trying the one before it", problem)
        problems.append(problem)
    return None, problems


def _index_moments(folder: Path) -> dict[str, list[tuple[Path, str, int]]]:
    """`exp_avg/NAME` -> the pieces of it: file, key and offset."""
    index: dict[str, list[tuple[Path, str, int]]] = {}
    for path in sorted(folder.glob("moments-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no dict
                name, _, offset = key.rpartition("@")
                index.setdefault(name, []).append((path, key, int(offset)))
    return index


def _fill(tensor: Tensor, piece: Slice, stored: list[tuple[Path, str, int]], key: str) -> None:
    """Copy into a slice of a moment whatever stored pieces overlap it; together they must cover it."""
    covered = 0
    for path, stored_key, offset in stored:
        with safe_open(path, framework="pt") as file:
            values = file.get_slice(stored_key)
            begin = max(piece.offset, offset)
            end = min(piece.offset + piece.numel, offset + values.get_shape()[0])
            if begin < end:
                tensor[begin - piece.offset : end - piece.offset].copy_(values[begin - offset : end - offset])
                covered += end - begin
    if covered != piece.numel:
        raise CheckpointError(
            f"the checkpoint holds {covered:,} of {piece.numel:,} values of {key} of {piece.name}: "
            "it belongs to another optimizer or model; use a new run folder"
        )


def check_belongs(state: State, run: State, global_batch: int) -> None:
    """CheckpointError when a checkpoint is of another model, data set, seed or batch than the run that wants it."""
    heads = {name: getattr(run.model, name) for name in HEADS.values()}
    differences = {
        "[model]": state.model.model_copy(update=heads) != run.model,
        "objective.span, span_form or sop": any(getattr(state.model, name) != value for name, value in heads.items()),
        "data.shards or data.mixture": state.fingerprint != run.fingerprint,
        "train.seed": state.seed != run.seed,
        "train_batch_size": state.samples != state.step * global_batch,
    }
    for name, differs in differences.items():
        if differs:
            raise CheckpointError(
                f"the checkpoint at step {state.step} was trained with another {name}; "
                f"set it back, or choose another run.folder"
            )
