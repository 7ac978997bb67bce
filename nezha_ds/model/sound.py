"""Whether weights can be what their config.json says, judged by names, shapes and types before anything is built.

A config that lies could ask for a model of any size, and a file of a few bytes can claim to hold any number of numbers;
so this comes first, and costs one pass over the weights for the numbers themselves (0.1 s for base).
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nezha_ds.errors import CheckpointError
from nezha_ds.model.config import NezhaConfig

_LAYER = re.compile(r"^nezha\.encoder\.layer\.(\d+)\.")
# Which axis of which tensor is which size.
_SIZES: dict[str, tuple[str, int]] = {
    "vocab_size": ("nezha.embeddings.word_embeddings.weight", 0),
    "hidden_size": ("nezha.embeddings.word_embeddings.weight", 1),
    "type_vocab_size": ("nezha.embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("nezha.encoder.layer.0.intermediate.dense.weight", 0),
}


def refuse_other_sizes(
    config: NezhaConfig, tensors: Mapping[str, Tensor], origin: str, but: frozenset[str] = frozenset()
) -> None:
    """CheckpointError when the weights, under today's names, have other sizes than the config, which `origin` names.

    `but` are sizes that may differ.
    """
    for size, (name, axis) in _SIZES.items():
        if size in but or name not in tensors:
            continue
        shape, told = tuple(tensors[name].shape), getattr(config, size)
        if len(shape) != 2 or shape[axis] != told:
            raise CheckpointError(
                f"{origin} says {size} = {told} and {name} has the shape {shape}; use the config.json they came with"
            )
    layers = {int(found[1]) for name in tensors if (found := _LAYER.match(name))}
    if layers and len(layers) != config.num_hidden_layers:
        raise CheckpointError(
            f"{origin} says num_hidden_layers = {config.num_hidden_layers} and the weights have {len(layers)} of them; "
            "use the config.json they came with"
        )


def refuse_unsound(tensors: Mapping[str, Tensor], origin: Path | str) -> None:
    """CheckpointError for a tensor of `origin` that is not floating-point or holds NaN or infinite numbers."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            continue
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{origin}: {name} holds {kind}, and weights are floating-point numbers; take the model before "
                "it was quantised"
            )
        # Numbers of one byte have no isfinite.
        finite = torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float())
        if not bool(finite.all()):
            bad = finite.numel() - int(finite.sum())
            raise CheckpointError(
                f"{origin}: {name} has {bad:,} numbers that are NaN or infinite; take an earlier checkpoint"
            )
