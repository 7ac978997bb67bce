"""Dropout that does not cost more than attention itself on a CPU.

torch draws one Bernoulli number per element on the CPU: 84 ms for the probabilities of one layer (4 × 12 × 512 × 512,
bf16, two cores), more than all matrix products of the layer's attention. Here 16 bits decide an element: SFC64, seeded
from torch's generator, gives four elements in 1.5 ns (torch's Mersenne Twister in 2.9), and one bit an element is kept
for backward. The rate is rounded to 1/65536 and the scale made to fit, so the expectation is exact. Other devices have
fast generators of their own, and torch.compile one that it fuses.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16
_DRAWS, _FLAGS = 1 << 14, 1 << 18
"""Numbers that are drawn, and elements that are unpacked, at a time: both stay in a core's cache."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Kept(NamedTuple):
    """Which of some elements are kept, and by what those are multiplied."""

    packed: Tensor
    """One bit an element, eight to a byte."""
    scale: float

    def drop_(self, *tensors: Tensor) -> None:
        """Write zeros over what is not kept, in contiguous tensors of one shape and dtype; nothing is scaled.

        The bits of a number times 1 or 0: in bf16 a fifth of the time of a product of numbers, which must round.
        """
        integers = _INTEGERS[tensors[0].element_size()]
        flat = [x.view(-1).view(integers) for x in tensors]
        for start in range(0, flat[0].numel(), _FLAGS):
            parts = [x[start : start + _FLAGS] for x in flat]
            flags = np.unpackbits(self.packed.numpy()[start // 8 :], count=parts[0].numel())
            factors = torch.from_numpy(flags).to(integers)
            for part in parts:
                part.mul_(factors)


class Dropout(nn.Module):
    """`dropout` while training, nothing in evaluation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def active_rate(self) -> float:
        """The rate at this moment."""
        return self.rate if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return dropout(x, self.active_rate)


def dropout(x: Tensor, rate: float) -> Tensor:
    """`x` with elements zeroed at the rate and the others scaled up; reproducible by `torch.manual_seed`."""
    if rate == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return _Dropped.apply(x, rate)  # pyright: ignore[reportReturnType] - apply has no type


def draw(elements: int, rate: float) -> Kept:
    """So many decisions, on the CPU."""
    dropped = round(rate * _LEVELS)
    packed = np.empty((elements + 7) // 8, np.uint8)
    generator = np.random.SFC64(int(torch.randint(1 << 62, ())))
    for start in range(0, len(packed), _DRAWS // 2):
        part = packed[start : start + _DRAWS // 2]
        part[:] = np.packbits(generator.random_raw(2 * len(part)).view(np.uint16) >= dropped)
    return Kept(torch.from_numpy(packed), _LEVELS / (_LEVELS - dropped))


def pack(flags: Tensor, scale: float) -> Kept:
    """Of a mask that is at hand: True is kept."""
    return Kept(torch.from_numpy(np.packbits(flags.numpy())), scale)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        kept = draw(x.numel(), rate)
        ctx.save_for_backward(kept.packed)
        ctx.scale = kept.scale
        return _scaled(x, kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _scaled(gradients[0], Kept(*ctx.saved_tensors, ctx.scale)), None


def _scaled(x: Tensor, kept: Kept) -> Tensor:
    scaled = (x * kept.scale).contiguous()
    kept.drop_(scaled)
    return scaled
