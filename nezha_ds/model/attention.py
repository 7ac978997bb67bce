"""Attention with functional relative positions: one signature, several bodies, chosen by name.

    e_ij = q_i · (k_j + a_ij) + mask_j,   z_i = Σ_j dropout(softmax_j(e_ij)) (v_j + a_ij)

`a_ij` is a row of the table in relative.py. Queries come divided by sqrt(H), which scales the position term too, as the
released code has it. B batch, N heads, L length, H head size, R rows of the table.

`reference` indexes the table into the (L, L, H) cube that the released code keeps: for tests. `table` multiplies by the
same cube without having it. With the keys in reverse order, a_ij depends on i + j' alone, so the cube is an
overlapping view of 2L - 1 rows (128 KiB at L = 512 in bf16, instead of 32 MiB), and a view that a batched matrix
product over i reads as it stands; only oneDNN, which computes bf16 on a CPU, copies it for the moment of a product.
Sums run inside matrix products, so bf16 and fp16 accumulate in fp32.

Other ways were measured (forward and backward of one layer of base width, one core; ms at 16 × 128 and 4 × 512, fp32
then bf16). This one: 67 and 330, 39 and 161. q times the table and `gather`, with `scatter_add` back: 87 and 336, 51
and 222, and its sums of up to L probabilities would run in bf16. q times the table spread along the diagonals by
`as_strided`, which does a quarter of the multiplications: 112 and 456, 54 and 170, because memory passes cost more than
products. The indexed cube: 67 and 478, 40 and 180.

`banded` (banded.py) works in blocks on a CPU, `sdpa` (rotated.py) through torch's kernels where no distance is clipped,
`triton` (clipped.py, kernels.py) through our own on a GPU: these keep no L x L tensor. `auto` takes of these what can
compute the tensors at hand; a body asked for by name that cannot is refused when the model is built.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from nezha_ds.errors import ConfigError
from nezha_ds.model import clipped
from nezha_ds.model.banded import banded_attention
from nezha_ds.model.clipped import triton_attention
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.dropout import Dropout
from nezha_ds.model.relative import relative_rows, reversed_cube
from nezha_ds.model.rotated import sdpa_attention

Body = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, Dropout], Tensor]

LONG = 400
"""Tokens from which blocks of a few heads are worth their calls."""
HAS_TRITON = importlib.util.find_spec("triton") is not None
LEAST_CAPABILITY = (8, 0)
"""Of an NVIDIA GPU that Triton has a compiler for: A100 and later."""


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: Callable[[Tensor], Tensor]) -> Tensor:
    """Without relative positions."""
    return dropout((q @ k.transpose(2, 3) + mask).softmax(dim=-1)) @ v


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """The equations as they stand.

    q (divided by sqrt(H)), k, v: (B, N, L, H); table: (R, H), or None where positions are absolute; mask: (B, 1, 1, L),
    added to the scores; all of one dtype. `dropout` maps (B, N, L, L) probabilities. Returns (B, N, L, H).
    """
    if table is None:
        return plain_attention(q, k, v, mask, dropout)
    cube = table[relative_rows(q.shape[2], table.shape[0] // 2, q.device)]
    scores = q @ k.transpose(2, 3) + torch.einsum("bnih,ijh->bnij", q, cube) + mask
    probabilities = dropout(scores.softmax(dim=-1))
    return probabilities @ v + torch.einsum("bnij,ijh->bnih", probabilities, cube)


def table_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """The same without a cube; arguments as in `reference_attention`, but `dropout` sees the keys in reverse."""
    if table is None:
        return plain_attention(q, k, v, mask, dropout)
    batch, heads, length, _ = q.shape
    cube = reversed_cube(table, length)
    # (B, N, L, H) -> (B·N, L, H); keys, values and mask reversed along L.
    q, k, v = q.flatten(0, 1), k.flip(2).flatten(0, 1), v.flip(2).flatten(0, 1)
    mask = mask.flip(3).expand(-1, heads, -1, -1).flatten(0, 1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2))
    # For each i: (B·N, H) @ (H, L), then (L, B·N, L) -> (B·N, L, L).
    scores += torch.bmm(q.transpose(0, 1), cube.transpose(1, 2)).transpose(0, 1)
    probabilities = dropout(scores.softmax(dim=-1).unflatten(0, (batch, heads))).flatten(0, 1)
    # For each i: (B·N, L) @ (L, H), then (L, B·N, H) -> (B·N, L, H).
    positions = torch.bmm(probabilities.transpose(0, 1), cube).transpose(0, 1)
    return torch.baddbmm(positions, probabilities, v).unflatten(0, (batch, heads))


def auto_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Dropout) -> Tensor:
    """The fastest body that can compute it, for positions that are functional or absolute."""
    choose = _fastest_on_cpu if q.device.type == "cpu" else _fastest_on_gpu
    return choose(q, table, dropout)(q, k, v, table, mask, dropout)


def learned_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Dropout) -> Tensor:
    """The fastest body that gives the table its gradient."""
    body = _fastest_on_cpu(q, table, dropout) if q.device.type == "cpu" else table_attention
    return body(q, k, v, table, mask, dropout)


def _fastest_on_cpu(q: Tensor, table: Tensor | None, dropout: Dropout) -> Body:
    # torch's flash kernel for CPUs has no dropout, and its own dropout there takes longer than the products.
    if table is None and not dropout.active_rate:
        return sdpa_attention
    # `banded` asks for numbers on the host, where a compiled or exported graph would break.
    long = not torch.compiler.is_compiling() and q.shape[2] >= LONG
    return banded_attention if long else table_attention


def _fastest_on_gpu(q: Tensor, table: Tensor | None, dropout: Dropout) -> Body:
    if table is None or q.shape[2] <= table.shape[0] // 2 + 1:
        return sdpa_attention
    fits = q.dtype in clipped.DTYPES and clipped.refusal(q.shape[3], table.shape[0] // 2) is None
    return triton_attention if fits and _gpu_runs_triton() else table_attention


@torch.compiler.assume_constant_result
def _gpu_runs_triton() -> bool:
    return HAS_TRITON and torch.cuda.get_device_capability() >= LEAST_CAPABILITY


BODIES: dict[str, Body] = {
    "auto": auto_attention,
    "sdpa": sdpa_attention,
    "triton": triton_attention,
    "banded": banded_attention,
    "table": table_attention,
    "reference": reference_attention,
}
"""By the name in `NezhaConfig.attention`."""


def attention_body(config: NezhaConfig) -> Body:
    """The body that the layers of a model call; ConfigError where the one that is asked for cannot compute it."""
    name = config.attention
    if (reason := REFUSALS.get(name, _accept)(config)) is not None:
        raise ConfigError(f"attention = {name!r} {reason}; take attention = 'auto'")
    learned = config.positions == "learned-relative"
    return learned_attention if name == "auto" and learned else BODIES[name]


def _accept(_: NezhaConfig) -> None:
    """What the others answer to every model."""


def _refuse_sdpa(config: NezhaConfig) -> str | None:
    longest, clip = config.max_position_embeddings, config.max_relative_position
    if config.positions == "functional-relative" and longest > clip + 1:
        return (
            f"needs a position for every distance, and max_position_embeddings = {longest} is more than "
            f"max_relative_position + 1 = {clip + 1}, beyond which distances look alike"
        )
    return "gives no gradient to learned positions" if config.positions == "learned-relative" else None


def _refuse_triton(config: NezhaConfig) -> str | None:
    if config.positions != "functional-relative":
        return f"computes positions = 'functional-relative', not {config.positions!r}"
    if not HAS_TRITON:
        return "needs Triton, which is not installed (torch for CUDA on Linux brings it; else `pip install triton`)"
    if not torch.cuda.is_available() and not clipped.interpreted():
        return "runs on a GPU, and torch sees none"
    return clipped.refusal(config.head_size, config.max_relative_position)


REFUSALS: dict[str, Callable[[NezhaConfig], str | None]] = {"sdpa": _refuse_sdpa, "triton": _refuse_triton}
"""Why a body cannot compute a model, or None; those not named compute all."""
