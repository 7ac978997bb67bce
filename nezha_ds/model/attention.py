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
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nezha_ds.model.banded import banded_attention
from nezha_ds.model.relative import relative_rows, reversed_cube

Body = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, Callable[[Tensor], Tensor]], Tensor]

LONG = 400
"""Tokens from which blocks of a few heads are worth their calls."""


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


def auto_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """The fastest body: `banded` for long sequences in fp32 on a CPU, else `table`, which alone trains a table."""
    long = q.device.type == "cpu" and q.dtype == torch.float32 and q.shape[2] >= LONG
    # `banded` asks for a number on the host, where a compiled graph would break.
    if long and not torch.compiler.is_compiling() and table is not None and not table.requires_grad:
        return banded_attention(q, k, v, table, mask, dropout)
    return table_attention(q, k, v, table, mask, dropout)


def _banded(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    if table is None:
        return plain_attention(q, k, v, mask, dropout)
    return banded_attention(q, k, v, table, mask, dropout)


BODIES: dict[str, Body] = {
    "auto": auto_attention,
    "banded": _banded,
    "table": table_attention,
    "reference": reference_attention,
}
"""By the name in `NezhaConfig.attention`."""
