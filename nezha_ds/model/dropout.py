"""Dropout that does not cost more than attention itself on a CPU.

torch draws one Bernoulli number per element on the CPU: 84 ms for the probabilities of one layer (4 × 12 × 512 × 512,
bf16, two cores), more than all matrix products of the layer's attention. Here one 64-bit draw decides four elements by
16 bits each: 22 ms. The rate is rounded to 1/65536 and the scale made to fit, so the expectation is exact. Other
devices have fast generators of their own, and torch.compile one that it fuses.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 1 << 16


def dropout(x: Tensor, rate: float) -> Tensor:
    """`x` with elements zeroed at the rate and the others scaled up; reproducible by `torch.manual_seed`."""
    if rate == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return x * _scaled_mask(x, rate)


def _scaled_mask(x: Tensor, rate: float) -> Tensor:
    """A tensor like `x` of zeros and 1 / (1 - rate)."""
    dropped = round(rate * _LEVELS)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
    return keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
