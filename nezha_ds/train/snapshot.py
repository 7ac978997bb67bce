"""A checkpoint on its way to the disk: copied to the host's memory first, then written by every rank, then committed.

    snapshot = take(engine, state, files)     collective; the engine may go on as soon as it returns
    entries = write(snapshot, temporary)      each rank its own files, synced, hashed
    commit(temporary, final, entries)         rank 0: the manifest, then the one rename that makes it a checkpoint

Written under a temporary name beside the final one, so that a crash at any moment leaves the old checkpoints and
perhaps a folder that nobody counts. Moments carry the names and offsets of model tensors, so ranks of another number,
or another ZeRO stage, pick what they need. A snapshot holds 8 bytes a parameter of this rank's slices, on rank 0 also 4
bytes for every parameter of the model: 1.2 GB for base on one rank, 0.5 GB on rank 0 of eight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nezha_ds.errors import CheckpointError
from nezha_ds.files import sha256_of, sync_folder, write_atomically
from nezha_ds.model.hf import hf_name, save_folder, write_tensors
from nezha_ds.optim.slices import Slice
from nezha_ds.train.checkpoint import MANIFEST, MOMENTS, STATE, Contents, FileEntry, State, remove
from nezha_ds.train.engine import Engine

Entries = dict[str, FileEntry]


@dataclass(frozen=True)
class Moments:
    """A rank's moments and the name of their file."""

    name: str
    tensors: Mapping[str, Tensor]
    """`exp_avg/NAME@OFFSET` -> (numel,)."""


@dataclass(frozen=True)
class Snapshot:
    """What this rank has to write."""

    state: State
    files: Mapping[str, bytes]
    """The tokenizer's, for the model folder; written by rank 0."""
    weights: Mapping[str, Tensor] | None
    """The whole model in fp32, by our names; on rank 0 only."""
    moments: Moments | None
    """None where another rank has them."""


def take(engine: Engine, state: State, files: Mapping[str, bytes]) -> Snapshot:
    """Copy what a checkpoint needs to the host; collective. Nothing of it changes when the engine goes on."""
    weights = gather_weights(engine)
    return Snapshot(state, files, weights if engine.world.is_main else None, copy_moments(engine))


def copy_moments(engine: Engine) -> Moments | None:
    """This rank's slices of the optimizer's moments, copied to the host; None where rank 0 has all of them."""
    world = engine.world
    if not engine.partitioned and not world.is_main:
        return None
    count = world.world_size if engine.partitioned else 1
    tensors = {
        f"{key}/{piece.name}@{piece.offset}": tensor.detach().to("cpu", copy=True)
        for piece in engine.slices
        for key, tensor in engine.moments(piece).items()
    }
    return Moments(f"{MOMENTS}{world.rank:05}-of-{count:05}.safetensors", tensors)


@torch.no_grad()
def gather_weights(engine: Engine) -> dict[str, Tensor]:
    """Every tensor of the model in fp32 on the CPU, put together from the ranks' slices; collective.

    Copies, but of tensors that are not trained, which come from the model itself. Empty on all ranks but 0.
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


def write(snapshot: Snapshot, folder: Path) -> Entries:
    """Write this rank's files into the folder, made if need be; their entries. LaunchError or OSError when it cannot.

    safetensors and hashlib work outside Python's lock, so that training goes on beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if snapshot.moments is not None:
        write_tensors(snapshot.moments.tensors, folder / snapshot.moments.name)
    if snapshot.weights is not None:
        weights = {hf_name(name): tensor for name, tensor in snapshot.weights.items()}
        save_folder(weights, snapshot.state.model, folder, snapshot.files)
        write_atomically(folder / STATE, snapshot.state.model_dump_json(indent=1))
    # What else lies there are the other ranks' moments.
    own = [
        path for path in folder.iterdir() if snapshot.weights is not None and not path.name.startswith((".", MOMENTS))
    ]
    if snapshot.moments is not None:
        own.append(folder / snapshot.moments.name)
    return {path.name: FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(own)}


def commit(temporary: Path, final: Path, entries: Entries) -> int:
    """Make a checkpoint of what all ranks wrote; its bytes. An error of ours or OSError when that is not possible."""
    for name, entry in entries.items():
        path = temporary / name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise CheckpointError(
                f"rank 0 does not find {path}, which another rank wrote; let run.folder lie where every node sees the "
                "same files"
            )
    write_atomically(temporary / MANIFEST, Contents(files=entries).model_dump_json(indent=1))
    if final.exists():
        replaced = final.with_name(f".{final.name}.old")
        remove(replaced)
        final.replace(replaced)
        remove(replaced)
    temporary.replace(final)
    sync_folder(final.parent)
    return sum(entry.bytes for entry in entries.values())
