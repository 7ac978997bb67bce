"""Attention on a CPU, a few heads at a time: no L x L tensor outlives its block.

Forward keeps q, k, v and one bit a probability for dropout. Backward computes the scores and probabilities of a block
again, while they lie in the cache (as FlashAttention, arXiv 2205.14135, does on a GPU). Products take the model's dtype,
so that bf16 has the processor's fast ones, and add up in fp32; softmax works in fp32 inside. Relative positions are in
diagonals.py.

FIGURES

B batch, N heads, L length, H head size, R rows of the table, G heads of a block.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nezha_ds.errors import ConfigError
from nezha_ds.model.diagonals import Plain, positions
from nezha_ds.model.dropout import Dropout, Kept, draw, pack

BLOCK = 1 << 21
"""Bytes of the scores that are computed at once, if that is one head or more. Less costs calls, more costs memory."""

Block = tuple[slice, slice]
"""Of the batch and of the heads."""


def banded_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """Arguments and result as of `attention.reference_attention`; the table may want a gradient.

    A `dropout` that is not ours is asked what it does to ones, (G, L, L) at a time: it must multiply by zeros and one
    other number. ConfigError on another device than a CPU.
    """
    if q.device.type != "cpu":
        raise ConfigError(f"attention = 'banded' computes on a CPU, and this model is on {q.device}; take 'auto'")
    return _Banded.apply(q, k, v, table, mask, dropout)  # pyright: ignore[reportReturnType] - apply has no type


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        mask: Tensor,
        dropout: Callable[[Tensor], Tensor],
    ) -> Tensor:
        bias = mask[:, 0, 0] if mask.any() else None
        here = _positions(q, table, bias)
        keys, values, (square, probabilities) = here.extended(), here.extended(), here.rooms(2)
        output, kept = _empty_like_rows(q), list[Kept]()
        for at in _blocks(q):
            query = _block(q, at)
            heads = len(query)
            scores = here.scores(square[:heads], query, here.extend(k[at], keys, bias if bias is None else bias[at[0]]))
            torch.softmax(scores, -1, out=probabilities[:heads])
            if drawn := _draw(dropout, scores):
                kept.append(drawn)
                drawn.drop_(probabilities[:heads])
            mixed, _ = here.mix(probabilities[:heads], here.extend(v[at], values))
            torch.mul(mixed.view_as(q[at]), drawn.scale if drawn else 1, out=output[at])
        ctx.save_for_backward(q, k, v, table, bias, *(one.packed for one in kept))
        ctx.scales = [one.scale for one in kept]
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table, bias, *packed = ctx.saved_tensors
        here = _positions(q, table, bias)
        keys, values, rooms = here.extended(), here.extended(), here.rooms(3)
        d_q, d_k, d_v = (_empty_like_rows(x) for x in (q, k, v))
        d_rows = torch.zeros_like(here.rows, dtype=torch.float32) if ctx.needs_input_grad[3] else None
        for number, at in enumerate(_blocks(q)):
            query, passed = _block(q, at), _block(gradients[0], at)
            square, probabilities, slopes = (room[: len(query)] for room in rooms)
            key = here.extend(k[at], keys, bias if bias is None else bias[at[0]])
            torch.softmax(here.scores(square, query, key), -1, out=probabilities)
            kept = Kept(packed[number], ctx.scales[number]) if packed else None
            if kept:
                passed *= kept.scale
            # What each probability is worth has the form of the scores: passed · (v_j + a_ij).
            worth = here.scores(square, passed, here.extend(v[at], values))
            # To drop the probabilities too, all of them must have been used once.
            if kept:
                kept.drop_(worth)
            torch._softmax_backward_data(worth, probabilities, -1, q.dtype, grad_input=slopes)
            if kept:
                kept.drop_(probabilities)
            d_v[at] = torch.bmm(probabilities.transpose(1, 2), passed).view_as(d_v[at])
            d_k[at] = torch.bmm(slopes.transpose(1, 2), query).view_as(d_k[at])
            mixed, factors = here.mix(slopes, key)
            d_q[at] = mixed.view_as(d_q[at])
            if d_rows is not None:
                d_rows += factors.T @ query.flatten(0, 1)
                d_rows += here.mix(probabilities, values[: len(query)])[1].T @ passed.flatten(0, 1)
        d_table = None
        if d_rows is not None:
            d_table = torch.zeros_like(table, dtype=d_rows.dtype).index_add_(0, here.index, d_rows).to(table.dtype)
        return d_q, d_k, d_v, d_table, None, None


def _positions(q: Tensor, table: Tensor | None, bias: Tensor | None) -> Plain:
    batch, heads, length, _ = q.shape
    return positions(table, q, length, min(batch * heads, _most(q)), bias is not None)


def _most(q: Tensor) -> int:
    return max(1, BLOCK // (q.element_size() * q.shape[2] ** 2))


def _blocks(q: Tensor) -> Iterator[Block]:
    """Some samples with all their heads, or some heads of one sample."""
    batch, heads = q.shape[:2]
    samples = max(1, _most(q) // heads)
    for sample in range(0, batch, samples):
        for head in range(0, heads, _most(q)):
            yield slice(sample, sample + samples), slice(head, head + _most(q))


def _block(x: Tensor, at: Block) -> Tensor:
    """(B, N, L, H) -> (G, L, H), a copy."""
    block = x[at]
    return torch.empty(block.shape, dtype=x.dtype).copy_(block).flatten(0, 1)


def _empty_like_rows(x: Tensor) -> Tensor:
    """(B, N, L, H) in the order (B, L, N, H), from which heads join without a copy."""
    batch, heads, length, size = x.shape
    return x.new_empty(batch, length, heads, size).transpose(1, 2)


def _draw(dropout: Callable[[Tensor], Tensor], scores: Tensor) -> Kept | None:
    if isinstance(dropout, Dropout):
        return draw(scores.numel(), dropout.active_rate) if dropout.active_rate else None
    ones = torch.ones_like(scores)
    kept = dropout(ones)
    return None if kept is ones else pack(kept != 0, kept.amax().item())
