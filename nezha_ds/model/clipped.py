"""The kernels of kernels.py as an attention body: `triton`, for clipped functional positions on a GPU.

Two operators that torch knows by name, forward and backward, with shapes for tracing: torch.compile takes them as they
are, with no break of the graph. Results lie as (B, L, N, H) in memory, so that joining the heads again copies nothing.
Dropout's seed is drawn on the device from torch's generator: no host sync, and a layer that is computed again for
its gradient (activation checkpointing) draws it again.

The block sizes are chosen by what ptxas reports (`python -m tests.model.compile_kernels`): with heads of 64 on an H100
backward spills nothing and forward 64 bytes a thread, and 99 KiB of shared memory, which an A10 has, are enough for
all. Not yet by timing, for which `tests/gpu/run.sh` has rows.

B batch, N heads, L length, H head size, R rows of the table.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nezha_ds.errors import ConfigError
from nezha_ds.model.dropout import Dropout

HEAD_SIZES = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CLIP = 8
"""A block has at least 16 queries, and at most 2K: kernels.py needs no row of the table beyond 2K steps then."""
_WORDS = 1 << 32


class Tiles(NamedTuple):
    """How a kernel is cut: queries and keys of a block, warps that share it, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


FORWARD = {16: Tiles(128, 32, 8, 3), 32: Tiles(128, 32, 8, 3), 64: Tiles(128, 32, 8, 3), 128: Tiles(64, 32, 8, 2)}
BACKWARD_QUERIES = {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(64, 32, 4, 2), 128: Tiles(32, 32, 4, 2)}
BACKWARD_KEYS = {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(32, 64, 4, 2), 128: Tiles(32, 32, 4, 2)}
"""By head size, for 16 bits; fp32 takes half the queries and keys."""


def triton_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Dropout) -> Tensor:
    """Arguments and result as of `attention.reference_attention`, on a GPU; a functional table, without gradient.

    `dropout` is asked for its rate alone; the kernels draw. ConfigError where they cannot run.
    """
    assert table is not None, "positions are functional"
    reason = refusal(q.shape[3], table.shape[0] // 2) or _refuse_tensors(q)
    if reason is not None:
        raise ConfigError(f"attention = 'triton' {reason}; take attention = 'auto'")
    rate = dropout.active_rate
    seed = torch.randint(1 << 62, (1,), device=q.device) if rate else None
    return _attend(q, k, v, mask.expand(len(q), -1, -1, -1)[:, 0, 0], table, seed, rate)[0]


def refusal(head_size: int, clip: int) -> str | None:
    """Why the kernels cannot compute a model of this shape, or None."""
    if head_size not in HEAD_SIZES:
        return f"has kernels for heads of {', '.join(map(str, HEAD_SIZES))} features, not of {head_size}"
    if clip < LEAST_CLIP:
        return f"needs max_relative_position of at least {LEAST_CLIP}, not {clip}"
    return None


def interpreted() -> bool:
    """Whether kernels run without a GPU, for tests."""
    return _kernels().INTERPRETED.value


def _refuse_tensors(q: Tensor) -> str | None:
    if q.dtype not in DTYPES:
        return f"computes in fp32, bf16 and fp16, not in {str(q.dtype).removeprefix('torch.')}"
    if q.device.type != "cuda" and not interpreted():
        return f"runs on a GPU, and this model is on the {q.device.type}"
    return None


def _kernels() -> Any:
    # Triton is optional, takes half a second to import, and decides as it is imported whether to interpret.
    from nezha_ds.model import kernels

    return kernels


def _tiles(choices: dict[int, Tiles], q: Tensor, table: Tensor) -> Tiles:
    tiles = choices[q.shape[3]]
    half = 2 if q.dtype == torch.float32 else 1
    return tiles._replace(queries=min(tiles.queries // half, _anchor(table)), keys=tiles.keys // half)


def _anchor(table: Tensor) -> int:
    """A of kernels.py: the largest power of two within 2K, or 128."""
    return min(1 << (table.shape[0] - 1).bit_length() - 1, 128)


def _cut(rate: float) -> tuple[int, float]:
    """Below which of 2^32 words a probability is dropped, and what the others are multiplied with."""
    cut = round(rate * _WORDS)
    return cut, _WORDS / (_WORDS - cut)


def _like(q: Tensor) -> Tensor:
    """Room for (B, N, L, H) as (B, L, N, H)."""
    batch, heads, length, size = q.shape
    return q.new_empty(batch, length, heads, size).transpose(1, 2)


def _rowed(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _launch(
    kernel: Any,
    blocks: int,
    tiles: Tiles,
    tensors: tuple,
    strides: tuple,
    q: Tensor,
    cut: int,
    scale: float,
    table: Tensor,
) -> None:
    exact = torch.get_float32_matmul_precision() == "highest"
    heads, length, size = q.shape[1:]
    with torch.cuda.device_of(q):
        kernel[(blocks * len(q) * heads,)](
            *tensors, *strides, heads, length, scale,
            CLIP=len(table) // 2, A=_anchor(table), H=size, M=tiles.queries, T=tiles.keys, CUT=cut, EXACT=exact,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip


@torch.library.custom_op("nezha_ds::clipped_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, table: Tensor, seed: Tensor | None, rate: float
) -> tuple[Tensor, Tensor]:
    """The result and each row's logarithm; mask is (B, L)."""
    tiles, (cut, scale) = _tiles(FORWARD, q, table), _cut(rate)
    q, k, v, mask, table = *map(_rowed, (q, k, v, mask)), table.contiguous()
    out, logs = _like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], mask.stride(0)
    tensors = q, k, v, mask, table, seed, out, logs
    _launch(_kernels()._forward, -(-q.shape[2] // tiles.queries), tiles, tensors, strides, q, cut, scale, table)
    return out, logs


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, table: Tensor, seed: Tensor | None, rate: float
) -> tuple[Tensor, Tensor]:
    return _like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("nezha_ds::clipped_attention_backward", mutates_args=())
def _slopes(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, table: Tensor, seed: Tensor | None, rate: float, out: Tensor,
    logs: Tensor, passed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v for that of the result."""
    cut, scale = _cut(rate)
    q, k, v, mask, out, passed, table = *map(_rowed, (q, k, v, mask, out, passed)), table.contiguous()
    d_q, d_k, d_v = (torch.empty_like(out) for _ in range(3))
    batch, heads, length, size = q.shape
    turned = q.new_empty(2, batch, heads, length, size)
    notes = logs.new_empty(5, batch, heads, length)
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], mask.stride(0), *passed.stride()[:3]
    tensors = q, k, v, mask, table, seed, out, logs, passed, d_q, turned, notes
    tiles = _tiles(BACKWARD_QUERIES, q, table)
    _launch(_kernels()._backward_queries, -(-length // tiles.queries), tiles, tensors, strides, q, cut, scale, table)
    tensors = q, k, v, mask, table, seed, logs, passed, d_k, d_v, turned, notes
    tiles = _tiles(BACKWARD_KEYS, q, table)
    _launch(_kernels()._backward_keys, -(-length // tiles.keys), tiles, tensors, strides, q, cut, scale, table)
    return d_q, d_k, d_v


@_slopes.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, table: Tensor, seed: Tensor | None, rate: float, out: Tensor,
    logs: Tensor, passed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(out), torch.empty_like(out), torch.empty_like(out)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, rate = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.rate = rate
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, passed: Tensor, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, mask, table, seed, out, logs = ctx.saved_tensors
    return *_slopes(q, k, v, mask, table, seed, ctx.rate, out, logs, passed), None, None, None, None


_attend.register_autograd(_differentiate, setup_context=_keep)
