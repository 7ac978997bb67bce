"""A verified checkpoint put into an engine of any world size and ZeRO stage.

Weights and moments are judged by name, shape and type before a number of them is copied: a file from elsewhere can ask
for no memory beyond its own size, fill nothing twice, and leave nothing as it was. Only files of the manifest are read.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from nezha_ds.errors import CheckpointError, NezhaError
from nezha_ds.model.hf import WEIGHTS, current_names, hf_name
from nezha_ds.optim.slices import Slice
from nezha_ds.train.checkpoint import MANIFEST, MOMENTS, State, read_contents
from nezha_ds.train.engine import Engine
from nezha_ds.train.ranks import Ranks

FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Stored:
    """A piece of a moment in a file: `numel` values from `offset` of the tensor on."""

    path: Path
    offset: int
    numel: int
    read: Callable[[int, int], Tensor]
    """The values from one place of the piece to another."""

    @property
    def end(self) -> int:
        """Where it ends in the tensor."""
        return self.offset + self.numel


def restore_together(
    folder: Path, engine: Engine, state: State, ranks: Ranks, may_lack: frozenset[str] = frozenset()
) -> list[str]:
    """`restore` on every rank; collective. What is wrong on one rank is raised on all of them."""
    problem, lacking = "", []
    try:
        lacking = restore(folder, engine, state, may_lack)
    except NezhaError as error:
        problem = str(error)
    if problems := [text for text in ranks.gather(problem) if text]:
        raise CheckpointError(problems[0])
    return lacking


def restore(folder: Path, engine: Engine, state: State, may_lack: frozenset[str] = frozenset()) -> list[str]:
    """Put weights, moments and counters of a verified checkpoint into an engine.

    Tensors named in `may_lack` keep what they are where the checkpoint has no weights, or no moments, of them; returned
    are those that do. CheckpointError names the file, the tensor and the value that is not as the engine needs it.
    """
    own = dict(engine.module.named_parameters())
    weights = _read_weights(folder / WEIGHTS, engine, may_lack)
    sizes = {name: parameter.numel() for name, parameter in own.items()}
    with ExitStack() as files:
        stored = index_moments(folder, sizes, files)
        untrained = {name for name in may_lack if own[name].requires_grad and f"exp_avg/{name}" not in stored}
        lacking = untrained | (own.keys() - weights.keys())
        engine.load_weights({name: weights.get(name, tensor.detach().float()) for name, tensor in own.items()})
        engine.make_moments()
        for piece in engine.slices:
            if piece.name not in lacking:
                for key, tensor in engine.moments(piece).items():
                    fill(tensor, piece, stored.get(f"{key}/{piece.name}", []), key)
    engine.restore_counters(state.counters, state.step)
    return sorted(lacking)


def _read_weights(path: Path, engine: Engine, may_lack: frozenset[str]) -> dict[str, Tensor]:
    """The model's tensors by our names, in fp32 and in the model's shapes; mapped into memory, not read yet."""
    try:
        stored = current_names(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it from a copy") from None
    wanted = {hf_name(name): (name, tuple(parameter.shape)) for name, parameter in engine.module.named_parameters()}
    # A run that may lack a head of the other's may also have none where the other has one.
    surplus = set() if may_lack else stored.keys() - wanted.keys()
    if strange := sorted(surplus | (wanted.keys() - stored.keys() - {hf_name(name) for name in may_lack})):
        state = "holds" if strange[0] in stored else "lacks"
        raise CheckpointError(f"{path} {state} {strange[0]}: it is of another model; use a new run folder")
    present = {theirs: ours for theirs, ours in wanted.items() if theirs in stored}
    for theirs, (_, shape) in present.items():
        tensor = stored[theirs]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: {theirs} has the shape {tuple(tensor.shape)} in {kind}, the model {shape} in float32; "
                "use a new run folder"
            )
    return {ours: stored[theirs] for theirs, (ours, _) in present.items()}


def index_moments(folder: Path, sizes: Mapping[str, int], files: ExitStack) -> dict[str, list[Stored]]:
    """`exp_avg/NAME` -> its pieces in the order of their offsets, which end within the tensor; `files` keeps them open.

    `sizes` are the numbers of values of the model's tensors. CheckpointError for a piece that can be none.
    """
    index: dict[str, list[Stored]] = {}
    for path in _moment_files(folder):
        try:
            file: Any = files.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); restore it from a copy") from None
        for key in file.keys():  # noqa: SIM118 - a safetensors file is no dict
            name, _, offset = key.rpartition("@")
            piece = _judge(path, key, name.partition("/")[2], offset, file.get_slice(key), sizes)
            index.setdefault(name, []).append(piece)
    for pieces in index.values():
        pieces.sort(key=lambda piece: piece.offset)
    return index


def _moment_files(folder: Path) -> list[Path]:
    """The files of moments that the manifest names."""
    try:
        names = read_contents(folder).files
    except (OSError, ValidationError):
        raise CheckpointError(f"{folder} has no readable {MANIFEST}; restore it from a copy") from None
    return [folder / name for name in sorted(names) if name.startswith(MOMENTS)]


def _judge(path: Path, key: str, tensor: str, offset: str, values: Any, sizes: Mapping[str, int]) -> Stored:
    shape, kind = values.get_shape(), values.get_dtype()
    if not (offset.isascii() and offset.isdigit()) or len(shape) != 1 or kind not in FLOATS:
        raise CheckpointError(f"{path}: {key!r} is no piece of a moment (shape {tuple(shape)}, {kind}); do not use it")
    begin, size = int(offset), sizes.get(tensor)
    if size is not None and begin + shape[0] > size:
        raise CheckpointError(
            f"{path}: {key!r} ends at {begin + shape[0]:,}, and the tensor has {size:,} values; use a new run folder"
        )
    return Stored(path, begin, shape[0], lambda low, high: values[low:high])


def fill(tensor: Tensor, piece: Slice, stored: list[Stored], key: str) -> None:
    """Copy into a slice of a moment the stored pieces that overlap it; each must begin where the one before it ends."""
    at, end = piece.offset, piece.offset + piece.numel
    for part in stored:
        if part.end <= piece.offset or part.offset >= end or not part.numel:
            continue
        low, high = max(piece.offset, part.offset), min(end, part.end)
        if low < at:
            raise CheckpointError(
                f"{part.path}: values from {low:,} on of {key} of {piece.name} come twice; restore it from a copy"
            )
        if low > at:
            break
        tensor[low - piece.offset : high - piece.offset].copy_(part.read(low - part.offset, high - part.offset))
        at = high
    if at != end:
        raise CheckpointError(
            f"the checkpoint holds {at - piece.offset:,} of {piece.numel:,} values of {key} of {piece.name}: "
            "it belongs to another optimizer or model; use a new run folder"
        )
