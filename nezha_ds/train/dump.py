"""A step that went wrong, as a folder from which one process can compute it again: see replay.py.

    RUN/dumps/step-00000042/
      model.safetensors config.json            fp32 weights before the step: the folder opens as a model
      batches-00000-of-00002.safetensors       `0/input_ids` …: each rank's micro-batches, sample ids with them
      dump.json                                step, seed, loss scale, losses by rank and micro-batch, gradients' norms,
                                               which tensors hold what is no number, the resolved recipe and JSON
      manifest.json                            size and SHA-256 of every file, written last

Written like a checkpoint: under a temporary name, renamed when all ranks are done. One for each step, the newest
`KEEP`; each is 4 bytes a parameter and about 20 a token of the step (0.4 GB and 0.2 GB for base and 65,536 × 128), and
none is begun without room on the disk. A dump may come from anywhere: only safetensors and JSON are read, only files
that the manifest names and that have its hashes, and nothing outside the folder.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.config import Settings
from nezha_ds.errors import CheckpointError, NezhaError
from nezha_ds.files import make_folder, sha256_of, unwritable, write_atomically
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.hf import WEIGHTS, current_names, hf_name, save_folder, write_tensors
from nezha_ds.train.checkpoint import MANIFEST, FileEntry, State, read_contents, remove_leftovers
from nezha_ds.train.engine import Engine
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.snapshot import commit, gather_weights

if TYPE_CHECKING:
    from nezha_ds.train.guard import Attempt

FORMAT, KEEP = 1, 3
FACTS = "dump.json"


class Gradient(Settings):
    """The gradient of one tensor, summed over micro-batches, averaged over ranks, not scaled."""

    model_config = ConfigDict(strict=False, ser_json_inf_nan="strings")

    norm: float
    nonfinite: int
    """How many of its numbers are NaN or infinite."""


class Dump(Settings):
    """`dump.json`."""

    # NaN and infinities are strings, as in metrics.jsonl; read back from strings, which strict numbers are not.
    model_config = ConfigDict(strict=False, ser_json_inf_nan="strings")

    format: int = FORMAT
    step: int
    """The step that went wrong, counted from 1 as the log does."""
    reason: str
    seed: int
    model: NezhaConfig
    precision: str
    device: str
    """Kind of device that the ranks had: cpu, cuda."""
    loss_scale: float | None
    losses: list[list[float]]
    """By rank and micro-batch: what backward began from, before scaling."""
    shares: list[list[dict[str, float]]]
    """The factors of the objectives in them."""
    gradients: dict[str, Gradient]
    """By the model's name of the tensor."""
    unsound_weights: dict[str, int]
    """Tensors of weights that held NaN or infinite numbers before the step, and how many."""
    recipe: dict[str, Any]
    """The resolved recipe and DeepSpeed JSON, as in a checkpoint."""
    versions: dict[str, str]


# ---------------------------------------------------------------------------------------------------------- writing


def write_dump(
    root: Path, reason: str, state: State, engine: Engine, attempt: "Attempt", losses: list[float], ranks: Ranks
) -> Path:
    """Write down a step whose update has not been applied; collective. LaunchError on every rank when any cannot."""
    final = root / f"step-{attempt.step + 1:08}"
    temporary = root / f".{final.name}.tmp"
    gathered = ranks.gather((losses, [dict(share) for share in attempt.shares], _own_gradients(engine)))
    weights = gather_weights(engine)
    facts = Dump(
        step=attempt.step + 1,
        reason=reason,
        seed=state.seed,
        model=state.model,
        precision=engine.config.precision,
        device=engine.device.type,
        loss_scale=engine.loss_scale,
        losses=[rank[0] for rank in gathered],
        shares=[rank[1] for rank in gathered],
        gradients=_summed([rank[2] for rank in gathered[: None if engine.partitioned else 1]], engine.loss_scale or 1),
        unsound_weights={name: bad for name, tensor in weights.items() if (bad := _nonfinite(tensor))},
        recipe=state.recipe,
        versions={name: version(name) for name in ("nezha-ds", "deepspeed", "torch")},
    )
    size = sum(tensor.nbytes for batch in attempt.batches for _, tensor in _tensors(batch))
    needed = sum(ranks.gather(size)) + sum(tensor.nbytes for tensor in weights.values())
    phases: Sequence[tuple[bool, Callable[[], None]]] = (
        (ranks.world.is_main, lambda: _begin(root, temporary, needed)),
        (True, lambda: _write_batches(temporary, attempt.batches, ranks)),
        (ranks.world.is_main, lambda: _write_model(temporary, weights, facts)),
        (ranks.world.is_main, lambda: _commit(temporary, final)),
    )
    for takes_part, action in phases:
        problems = ranks.gather(_problem_of(action) if takes_part else "")
        if told := next(filter(None, problems), None):
            if ranks.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise unwritable(final, OSError(0, told))
    return final


def _own_gradients(engine: Engine) -> dict[str, tuple[float, int]]:
    """Squared norm and count of what is no number, of this rank's part of each tensor's gradient."""
    # One after the other: all of them in fp64 would be twice the gradients' memory.
    return {
        piece.name: (float(part.square().sum()), _nonfinite(part))
        for piece, gradient in engine.gradients()
        for part in [gradient.detach().double()]
    }


def _summed(ranks: list[dict[str, tuple[float, int]]], scale: float) -> dict[str, Gradient]:
    names = {name: None for rank in ranks for name in rank}
    parts = {name: [rank[name] for rank in ranks if name in rank] for name in names}
    return {
        name: Gradient(norm=sqrt(sum(part[0] for part in own)) / scale, nonfinite=sum(part[1] for part in own))
        for name, own in parts.items()
    }


def _nonfinite(tensor: Tensor) -> int:
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def _tensors(batch: Batch) -> list[tuple[str, Tensor]]:
    named = [(field.name, getattr(batch, field.name)) for field in fields(batch)]
    return [(name, tensor) for name, tensor in named if tensor is not None]


def _begin(root: Path, temporary: Path, needed: int) -> None:
    make_folder(root)
    remove_leftovers(root)
    if (free := shutil.disk_usage(root).free) < needed:
        raise OSError(0, f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free")
    temporary.mkdir()


def _write_batches(folder: Path, batches: Sequence[Batch], ranks: Ranks) -> None:
    named = {
        f"{number}/{name}": tensor.cpu().contiguous()
        for number, batch in enumerate(batches)
        for name, tensor in _tensors(batch)
    }
    write_tensors(named, folder / _batches_file(ranks.world.rank, ranks.world.world_size))


def _batches_file(rank: int, world_size: int) -> str:
    return f"batches-{rank:05}-of-{world_size:05}.safetensors"


def _write_model(folder: Path, weights: dict[str, Tensor], facts: Dump) -> None:
    save_folder({hf_name(name): tensor for name, tensor in weights.items()}, facts.model, folder)
    write_atomically(folder / FACTS, facts.model_dump_json(indent=1))


def _commit(temporary: Path, final: Path) -> None:
    files = sorted(path for path in temporary.iterdir() if path.is_file())
    entries = {path.name: FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in files}
    commit(temporary, final, entries)
    for old in sorted(final.parent.glob("step-*"), reverse=True)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def _problem_of(action: Callable[[], None]) -> str:
    try:
        action()
    except (OSError, NezhaError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


# ---------------------------------------------------------------------------------------------------------- reading


def read_dump(folder: Path) -> tuple[Dump, dict[str, Tensor], list[list[Batch]]]:
    """The facts, the weights under Hugging Face's names, and the micro-batches of each rank, all verified.

    CheckpointError for a folder that is no dump, is damaged, or holds what cannot be a batch of that model.
    """
    _verify(folder)
    try:
        facts = Dump.model_validate_json((folder / FACTS).read_bytes())
        weights = current_names(load_file(folder / WEIGHTS))
        world_size = len(facts.losses)
        read = [load_file(folder / _batches_file(rank, world_size)) for rank in range(world_size)]
    except (OSError, SafetensorError, ValidationError) as error:
        raise CheckpointError(f"{folder} cannot be read ({str(error).splitlines()[0]}); copy it again") from None
    if facts.format != FORMAT:
        raise CheckpointError(f"{folder} has format {facts.format}, this version reads {FORMAT}")
    if [len(own) for own in facts.losses] != [len(own) for own in facts.shares]:
        raise CheckpointError(f"{folder}/{FACTS} tells of other losses than factors of them; copy it again")
    batches = [
        _batches(tensors, len(own), f"{folder}: rank {rank}")
        for rank, (tensors, own) in enumerate(zip(read, facts.losses, strict=True))
    ]
    for batch in (batch for own in batches for batch in own):
        _refuse_stray(batch, facts.model, str(folder))
    return facts, weights, batches


def _verify(folder: Path) -> None:
    try:
        contents = read_contents(folder)
    except (OSError, ValidationError):
        raise CheckpointError(f"{folder} has no readable {MANIFEST}; name a folder in RUN/dumps") from None
    if FACTS not in contents.files:
        raise CheckpointError(f"{folder} is no dump: its {MANIFEST} names no {FACTS}; name a folder in RUN/dumps")
    for name, entry in contents.files.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink():
            raise CheckpointError(f"{folder} names a file outside its folder: {name!r}; do not use it")
        if not path.is_file() or path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
            raise CheckpointError(f"{path} is missing, cut short or damaged; copy it again")


def _batches(tensors: dict[str, Tensor], count: int, origin: str) -> list[Batch]:
    named: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        if not number.isdigit() or int(number) >= count or tensor.dtype != torch.int64:
            raise CheckpointError(f"{origin} has {key!r}, which belongs to no micro-batch of the step; copy it again")
        named[int(number)][name] = tensor
    try:
        return [Batch(**own) for own in named]
    except TypeError as error:
        raise CheckpointError(f"{origin} has micro-batches that are none ({error}); copy it again") from None


def _refuse_stray(batch: Batch, config: NezhaConfig, origin: str) -> None:
    """Numbers that would read beside a table: on a GPU that ends the process."""
    length, words = batch.input_ids.shape[-1], config.vocab_size
    above = {
        "input_ids": words,
        "token_type_ids": config.type_vocab_size,
        "lengths": length + 1,
        "mlm_positions": length,
        "mlm_labels": words,
        "next_sentence_labels": 2,
        "sentence_order_labels": 2,
        "span_boundaries": length,
    }
    for name, tensor in _tensors(batch):
        told = tensor[tensor != IGNORE] if name.endswith("_labels") else tensor
        if name in above and told.numel() and not 0 <= int(told.min()) <= int(told.max()) < above[name]:
            raise CheckpointError(f"{origin}: {name} goes beyond 0 to {above[name] - 1}; it is of another model")
