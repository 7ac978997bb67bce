"""Where DeepSpeed keeps the numbers that an optimizer updates, by its private names for each precision and stage."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nezha_ds.optim.slices import Slice


def find_slices(engine: Any) -> Iterator[Slice]:
    """Which piece of which tensor this rank's optimizer updates, and where it lies.

    ZeRO 1 and 2, and bf16 with fp32 accumulation: `_hp_mapping` of each parameter. Half precision without ZeRO: lists
    of masters beside lists of parameters, or one flat master a group. fp32 without ZeRO: the parameters themselves.
    """
    named = {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    masters = _masters(engine.optimizer)
    for index, (name, parameter) in enumerate(named.items()):
        if hasattr(parameter, "_hp_mapping"):
            mapping = parameter._hp_mapping
            if mapping is not None:
                owner = engine.basic_optimizer.param_groups[mapping.param_group_index]["params"][0]
                low, high = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
                yield Slice(name, index, low.start, high.numel, owner, high.start)
        else:
            owner, start = masters.get(id(parameter), (parameter, 0))
            yield Slice(name, index, 0, parameter.numel(), owner, start)


def _masters(optimizer: Any) -> dict[int, tuple[Tensor, int]]:
    """Parameter id -> (fp32 master, where the parameter begins in it), for half precision without ZeRO."""
    if hasattr(optimizer, "fp32_groups_flat"):
        return {
            id(parameter): (flat, start)
            for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True)
            for parameter, start in zip(group, _starts(group), strict=True)
        }
    if hasattr(optimizer, "fp32_groups"):
        return {
            id(parameter): (master, 0)
            for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            for parameter, master in zip(group, masters, strict=True)
        }
    return {}


def _starts(tensors: list[Tensor]) -> list[int]:
    ends = torch.tensor([0, *(tensor.numel() for tensor in tensors)]).cumsum(0)
    return ends[:-1].tolist()
