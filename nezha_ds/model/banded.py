"""Attention with clipped relative positions, a few heads at a time: no L x L tensor outlives its block.

    a_ij = a_low + [ |j - i| < K ] (a_row - a_low) + [ j - i >= K ] (a_high - a_low)

A term that is the same for all keys changes no softmax, so the scores need the band of 2K - 1 diagonals and one number
a query beyond it. The square of scores lies in a frame with room for half a band on both sides; there the band is a
strided view, (i, d) at column i + d, that a matrix product reads and writes as it stands. The value side is the same
three terms. Forward keeps q, k, v, two numbers a row and one byte a probability for dropout; backward
computes the scores again, block by block, while they lie in the cache (as FlashAttention, arXiv 2205.14135, does on a
GPU). In fp32 whatever the model's dtype; sums are as exact as `reference`'s or better.

Forward and backward of one layer of base width, one core, 4 x 512 in fp32: 361 ms where `table` takes 418; a step of
four layers peaks at 1,083 MiB instead of 1,665. Below 400 tokens, and in bf16, its many small calls cost more than they
save.

B batch, N heads, L length, H head size, K clip, G heads of a block.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 1 << 16
"""Scores that are computed at once, if that is one head or more: 256 KiB of fp32."""


class Rows(NamedTuple):
    """The table in three parts, of the working dtype."""

    band: Tensor
    """(2h - 1, H): rows of the distances 1 - h .. h - 1, less the low row; h = min(K, L)."""
    low: Tensor
    """(1, H): the row of all distances up to -h."""
    high: Tensor
    """(1, H): the row of all distances from h on, less the low row."""
    beyond: Tensor | None
    """(L, L): 1 where the distance is K or more; None where no two tokens are so far apart."""


class Frame:
    """Room for the scores of G heads with half a band of zeros on both sides."""

    def __init__(self, heads: int, length: int, half: int, like: Tensor) -> None:
        self.buffer = like.new_zeros(heads, length, length + 2 * half)
        self._length, self._half = length, half

    def square(self, heads: int) -> Tensor:
        """(G, L, L)."""
        return self.buffer[:heads, :, self._half : self._half + self._length]

    def band(self, heads: int) -> Tensor:
        """(G, L, 2h - 1): the diagonals from 1 - h to h - 1; beyond the square's edges it shows the frame."""
        length, width = self._length, self.buffer.shape[2]
        return self.buffer.as_strided((heads, length, 2 * self._half - 1), (length * width, width + 1, 1), 1)

    def clear_edges(self, heads: int) -> None:
        """Zeros around the square again, after something was added to the band."""
        self.buffer[:heads, :, : self._half] = 0
        self.buffer[:heads, :, self._half + self._length :] = 0


def banded_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, mask: Tensor, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """Arguments and result as of `attention.reference_attention`; the table takes no gradient.

    `dropout` is asked what it does to ones, (G, L, L) at a time: it must multiply by zeros and one other number.
    """
    return _Banded.apply(q, k, v, table, mask, dropout)  # pyright: ignore[reportReturnType] - apply has no type


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: Tensor, mask: Tensor, dropout: Callable[[Tensor], Tensor]
    ) -> Tensor:
        batch, heads, length, _ = q.shape
        rows = _rows(table.to(_work_dtype(q)), length)
        bias = mask.to(rows.low.dtype).expand(-1, heads, -1, -1).reshape(batch * heads, 1, length)
        flat = [x.flatten(0, 1) for x in (q, k, v)]
        output = torch.empty_like(flat[0])
        # (B·N, L, 1): each row's highest score and its sum of exponentials. Their logarithm together would lose digits.
        tops, sums = (rows.low.new_empty(batch * heads, length, 1) for _ in range(2))
        kept: list[Tensor] = []
        scale = 1.0
        frame = _frame(batch * heads, length, rows)
        for at in _blocks(batch * heads, length):
            query, key, value = (x[at].to(rows.low.dtype) for x in flat)
            scores = _scores(frame, query, key, rows, bias[at])
            tops[at] = scores.amax(-1, keepdim=True)
            sums[at] = scores.sub_(tops[at]).exp_().sum(-1, keepdim=True)
            ones = torch.ones_like(scores, memory_format=torch.contiguous_format)
            if (keep := dropout(ones)) is not ones:
                scale = keep.amax().item()
                scores.mul_(keep)
                kept.append(keep != 0)
            output[at] = _mix(frame, value, rows) / sums[at]
        ctx.save_for_backward(*flat, tops, sums, bias, *kept)
        ctx.rows, ctx.scale, ctx.heads = rows, scale, heads
        return output.unflatten(0, (batch, heads))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, tops, sums, bias, *kept = ctx.saved_tensors
        rows, length = ctx.rows, q.shape[1]
        gradient = gradients[0].flatten(0, 1)
        d_query, d_key, d_value = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        first, second = (_frame(len(q), length, rows) for _ in range(2))
        for number, at in enumerate(_blocks(len(q), length)):
            query, key, value, passed = (x[at].to(rows.low.dtype) for x in (q, k, v, gradient))
            # Not yet divided by their sums: that is cheaper done to what they are multiplied with.
            probabilities = _scores(first, query, key, rows, bias[at]).sub_(tops[at]).exp_()
            # What each probability is worth has the form of the scores: passed · (v_j + a_ij).
            slopes = _scores(second, passed, value, rows).add_(passed @ rows.low.T)
            dropped = probabilities
            if kept:
                keep = kept[number].to(rows.low.dtype).mul_(ctx.scale)
                slopes.mul_(keep)
                dropped = probabilities * keep
            d_value[at] = torch.bmm(dropped.transpose(1, 2), passed / sums[at])
            # Not from the output, as on a GPU: where one key has all the probability the two must cancel exactly.
            slopes.mul_(probabilities)
            slopes.sub_(probabilities.mul_(slopes.sum(-1, keepdim=True) / sums[at]))
            d_key[at] = torch.bmm(slopes.transpose(1, 2), query / sums[at])
            d_query[at] = _mix(second, key, rows) / sums[at]
        shape = (-1, ctx.heads)
        return d_query.unflatten(0, shape), d_key.unflatten(0, shape), d_value.unflatten(0, shape), None, None, None


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows(table: Tensor, length: int) -> Rows:
    clip = table.shape[0] // 2
    half = min(clip, length)
    low, high = table[clip - half, None], table[clip + half, None]
    band = table[clip - half + 1 : clip + half] - low
    if length <= clip:
        return Rows(band, low, high - low, None)
    position = torch.arange(length, device=table.device)
    return Rows(band, low, high - low, (position - position[:, None] >= clip).to(table.dtype))


def _frame(heads: int, length: int, rows: Rows) -> Frame:
    return Frame(min(heads, _group(length)), length, (len(rows.band) + 1) // 2, rows.low)


def _group(length: int) -> int:
    return max(1, BLOCK // (length * length))


def _blocks(heads: int, length: int) -> Iterator[slice]:
    for start in range(0, heads, _group(length)):
        yield slice(start, min(start + _group(length), heads))


def _scores(frame: Frame, query: Tensor, key: Tensor, rows: Rows, bias: Tensor | None = None) -> Tensor:
    """query_i · (key_j + a_ij - a_low) + bias_j in the frame's square, whose edges stay zero: (G, L, L)."""
    heads = len(query)
    square = frame.square(heads)
    if bias is None:
        torch.bmm(query, key.transpose(1, 2), out=square)
    else:
        torch.baddbmm(bias, query, key.transpose(1, 2), out=square)
    frame.band(heads).add_(query @ rows.band.T)
    frame.clear_edges(heads)
    return square if rows.beyond is None else square.addcmul_(query @ rows.high.T, rows.beyond)


def _mix(frame: Frame, value: Tensor, rows: Rows) -> Tensor:
    """Σ_j square_ij (value_j + a_ij): (G, L, H)."""
    heads = len(value)
    square = frame.square(heads)
    mixed = torch.bmm(square, value).add_(frame.band(heads) @ rows.band)
    mixed += square.sum(-1, keepdim=True) * rows.low
    if rows.beyond is not None:
        mixed += (square * rows.beyond).sum(-1, keepdim=True) * rows.high
    return mixed
