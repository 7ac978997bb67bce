"""Functional relative positions: a fixed table of sinusoids, and which row of it a pair of tokens takes.

    row p of the table:   a[p, 2k] = sin(p · w_k),   a[p, 2k + 1] = cos(p · w_k),   w_k = 10000^(-2k / H)
    a query at i and a key at j take row   p = clip(j - i, -K, K) + K,   0 ≤ p < R = 2K + 1

The paper (arXiv 1909.00204) prints sin(j - i), which positions.py offers too; every released code and weight has the
shifted, clipped row, which differs by a fixed rotation of each pair of features, so that existing weights need this
form. One table serves keys and values of all heads and layers: 129 × 64 numbers, 32 KiB. It has no parameters and never
enters a state dict.
"""

import math

import torch
from torch import Tensor


def relative_table(max_relative_position: int, head_size: int) -> Tensor:
    """The (R, H) table in fp32, operation for operation as the released code computes it.

    In exact arithmetic the entries of large angles would differ by 4e-6, and every hidden state with them.
    """
    return sinusoids(torch.arange(2 * max_relative_position + 1).float(), head_size)


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """(R,) -> (R, size), in the positions' own floating dtype: sines on even columns, cosines on odd ones."""
    frequencies = torch.exp(torch.arange(0, size, 2).to(positions.dtype) * (-math.log(10000.0) / size))
    angles = positions[:, None] * frequencies
    # (R, size / 2, 2) -> (R, size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def relative_rows(length: int, max_relative_position: int, device: torch.device | None = None) -> Tensor:
    """The (L, L) row numbers of queries i (first axis) and keys j (second), int64."""
    positions = torch.arange(length, device=device)
    distances = positions - positions[:, None]
    return distances.clamp(-max_relative_position, max_relative_position) + max_relative_position


def reversed_cube(table: Tensor, length: int) -> Tensor:
    """`table[relative_rows(…)]` with its keys in reverse order, (L, L, H), as a view of only 2L - 1 rows.

    With j' = L - 1 - j the distance is j - i = L - 1 - (i + j'), so that entry (i, j') is row i + j' of a list of
    rows by falling distance. Read only: entries share memory.
    """
    clip, head_size = table.shape[0] // 2, table.shape[1]
    distances = torch.arange(length - 1, -length, -1, device=table.device)
    by_distance = table[distances.clamp(-clip, clip) + clip]
    return by_distance.as_strided((length, length, head_size), (head_size, head_size, 1))
