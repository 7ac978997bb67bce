"""Where DeepSpeed's wrappers keep a step's gradients between the last backward and the update, and how they go.

    ZeRO 1 and 2                       `averaged_gradients`: by group the tensors of this rank's partition, in order
    ZeRO 1, bf16 with fp32 sums        one flat partition a group
    no ZeRO                            `.grad` of the parameters, the same on every rank

With `engine.py` all that knows those names. Everything here is a view: nothing is copied and nothing waits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nezha_ds.optim.slices import Slice


def own_gradients(
    optimizer: Any, groups: list[dict[str, Any]], named: Mapping[str, Tensor], slices: Sequence[Slice]
) -> Iterator[tuple[Slice, Tensor]]:
    """Each slice that this rank updates with its gradient, (numel,): summed over micro-batches, averaged over ranks.

    In fp16 they are still scaled. `groups` are those of the optimizer inside the wrapper, `named` the model's
    parameters. Slices of parameters without a gradient are left out.
    """
    find = _finder(optimizer, groups, named)
    for piece in slices:
        if (gradient := find(piece)) is not None:
            yield piece, gradient


def squared_norm(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Sum of squares over all tensors: a scalar in fp64 that stays on the device, NaN or infinite where any number is.

    fp64, because squares of what fp32 can hold leave fp32's range. One pass over the gradients.
    """
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm(list(gradients), 2, torch.float32)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).double().square().sum()


def drop_gradients(optimizer: Any) -> None:
    """Forget the step's gradients, as DeepSpeed itself does at an overflow; nothing else changes."""
    if hasattr(optimizer, "averaged_gradients"):
        optimizer.zero_grad(set_to_none=True)
        optimizer._release_preflattened_grad_buffers()
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = optimizer.all_grad_tensors[group] = None
        # The number of the micro-batch within a step, -1 before the first.
        optimizer.micro_step_id = -1
    elif hasattr(optimizer, "clear_hp_grads"):
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads(set_to_none=True)
    else:
        optimizer.zero_grad(set_to_none=True)


def _finder(
    optimizer: Any, groups: list[dict[str, Any]], named: Mapping[str, Tensor]
) -> Callable[[Slice], Tensor | None]:
    """What gives the gradient of a slice."""
    numbers = {id(group["params"][0]): number for number, group in enumerate(groups)}
    if hasattr(optimizer, "averaged_gradients"):
        # A group's list is its partition, in parts: padding may be among them, and begin where nothing is asked for.
        parts = {
            (number, start): part.reshape(-1)
            for number in numbers.values()
            for start, part in _with_starts(optimizer.averaged_gradients[number])
        }
        return lambda piece: parts[numbers[id(piece.owner)], piece.start]
    if hasattr(optimizer, "fp32_groups_gradient_flat_partition"):
        flat = optimizer.fp32_groups_gradient_flat_partition
        return lambda piece: piece.of(flat[numbers[id(piece.owner)]])

    def of_parameter(piece: Slice) -> Tensor | None:
        gradient = named[piece.name].grad
        return None if gradient is None else gradient.reshape(-1).narrow(0, piece.offset, piece.numel)

    return of_parameter


def _with_starts(parts: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    start = 0
    for part in parts:
        yield start, part
        start += part.numel()
