"""Inputs and comparisons for the tests of attention."""

from collections.abc import Callable

import torch
from torch import Tensor

from nezha_ds.model.attention import Body
from nezha_ds.model.dropout import Dropout
from nezha_ds.model.nezha import padding_mask
from nezha_ds.model.relative import relative_table

Arguments = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]
KEEP = Dropout(0.0)


def inputs(
    lengths: list[int],
    heads: int = 3,
    size: int = 8,
    clip: int = 64,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Arguments:
    """q, k, v that want gradients, the table and the mask."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), heads, max(lengths), size)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3))
    table = relative_table(clip, size).to(device, dtype)
    return q, k, v, table, padding_mask(torch.tensor(lengths, device=device), max(lengths), dtype)


def unshifted(arguments: Arguments) -> Arguments:
    """The same with the paper's own rows, sin and cos of (j - i) w, for every distance."""
    q, k, v, _, mask = arguments
    distances = torch.arange(1 - q.shape[2], q.shape[2]).double()
    frequencies = 10000 ** (-torch.arange(0, q.shape[3], 2).double() / q.shape[3])
    angles = distances[:, None] * frequencies
    return q, k, v, torch.stack((angles.sin(), angles.cos()), -1).flatten(1).to(q), mask


def forward_and_backward(
    body: Body, arguments: Arguments, dropout: Callable[[Tensor], Tensor] = KEEP
) -> tuple[Tensor, ...]:
    """The output and the gradients of q, k and v, for a loss that weighs every feature differently."""
    output = body(*arguments, dropout)  # pyright: ignore[reportArgumentType] - reference and table take any function
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view(output.shape)
    return output, *torch.autograd.grad((output * weights).sum(), arguments[:3])


def in_float64(arguments: Arguments) -> Arguments:
    """The same numbers, exactly, in fp64."""
    q, k, v, table, mask = (None if x is None else x.detach().double() for x in arguments)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), table, mask


def assert_no_worse(body: Body, reference: Body, arguments: Arguments, factor: float, floor: float = 0.0) -> None:
    """`body` errs at most `factor` times as much as the reference, or by the share `floor` of what is exact."""
    truth = forward_and_backward(reference, in_float64(arguments))
    ours, theirs = forward_and_backward(body, arguments), forward_and_backward(reference, arguments)
    for exact, fast, slow in zip(truth, ours, theirs, strict=True):
        assert fast.dtype == arguments[0].dtype
        assert fast.isfinite().all()
        assert (fast - exact).norm() <= max(factor * (slow - exact).norm(), floor * exact.norm())


def probabilities(body: Body, arguments: Arguments, dropout: Dropout) -> Tensor:
    """(B, N, L, L) after dropout, read off the outputs, which are linear in v: unit vectors show H keys at a time."""
    q, k, _, table, mask = (None if x is None else x.detach() for x in arguments)
    length, size = q.shape[2], q.shape[3]

    def mixed(v: Tensor) -> Tensor:
        torch.manual_seed(7)
        return body(q, k, v.expand_as(q).contiguous(), table, mask, dropout)

    nothing = mixed(q.new_zeros(length, size))
    shown = [mixed(torch.eye(length, dtype=q.dtype, device=q.device)[:, at : at + size].contiguous()) - nothing
             for at in range(0, length - size + 1, size)]  # fmt: skip
    rest = length % size
    if rest:
        units = q.new_zeros(length, size)
        units[length - rest :, :rest] = torch.eye(rest, dtype=q.dtype, device=q.device)
        shown.append((mixed(units) - nothing)[..., :rest])
    return torch.cat(shown, -1)
