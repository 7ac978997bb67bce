"""Attention with unclipped relative positions through torch's own fused kernels: `sdpa`.

Rows of a functional table are [sin θ, cos θ] with θ = (d + s) w, where s is 0 in the paper's equation and K in released
models. While no distance is clipped, a row splits between query and key,

    q_i · a_(j-i) = φ(q_i) · ψ(j),   ψ(j) = [sin jw, cos jw],   φ(q_i) = q_i turned by (s - i) w,

so attention over [q; φ] and [k; ψ] has the whole score, and attention over [v; ψ] the whole sum, once its second half
is turned back: heads of twice the size, in memory linear in L. Both turns are read off the table, whatever s is: the
row of distance -i is the angle (s - i) w, and ψ(j) is the row of j less the angle of the row of 0.

Which of torch's kernels run: with a mask that is added to scores, as ours for padding, the memory-efficient one on a
GPU (FlashAttention's takes none, and whether a batch has padding is not known on the host without a sync), and on a CPU
a flash kernel, unless there is dropout, which it has not: then torch builds the L x L probabilities.

B batch, N heads, L length, H head size, R rows of the table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nezha_ds.errors import ConfigError
from nezha_ds.model.dropout import Dropout


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor, dropout: Dropout) -> Tensor:
    """Arguments and result as of `attention.reference_attention`; a table is functional and gets no gradient.

    `dropout` is asked for its rate alone. ConfigError where distances are clipped: L - 1 > R // 2.
    """
    rate = dropout.active_rate
    if table is None:
        return F.scaled_dot_product_attention(q, k, v, mask, rate, scale=1.0)
    length, size, clip = q.shape[2], q.shape[3], table.shape[0] // 2
    if length > clip + 1:
        raise ConfigError(
            f"attention = 'sdpa' needs a position for every distance, and {length} tokens are more than "
            f"max_relative_position + 1 = {clip + 1}; take attention = 'auto'"
        )
    # The rows of the distances 0, -1, -2 ..: those behind the middle, backwards.
    back = table[clip - length + 1 : clip + 1].flip(0)
    # ψ: the rows of the distances 0, 1, 2 .., less the angle of the first.
    wave = turn(table[clip : clip + length], table[clip]).expand(*k.shape[:2], -1, -1)
    q = torch.cat((q, turn(q, back)), -1)
    k, v = torch.cat((k, wave), -1), torch.cat((v, wave), -1)
    mixed = F.scaled_dot_product_attention(q, k, v, mask, rate, scale=1.0)
    return mixed[..., :size] + turn(mixed[..., size:], back, backwards=True)


def turn(x: Tensor, rows: Tensor, backwards: bool = False) -> Tensor:
    """Each pair of features of (..., L, H) turned by the angle of its row [sin, cos], (L, H) or (H,), or back by it."""
    exact = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(exact).unflatten(-1, (-1, 2)).unbind(-1)
    sine, cosine = rows.to(exact).unflatten(-1, (-1, 2)).unbind(-1)
    if backwards:
        sine = -sine
    pairs = torch.stack((first * cosine - second * sine, second * cosine + first * sine), -1)
    return pairs.flatten(-2).to(x.dtype)
