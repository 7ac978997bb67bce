"""What torch's own matrix product reaches on this machine: the yardstick of the rows `step-share-…`."""

from collections.abc import Callable

import torch

SIZE, TIMES = 4096, 2


def side(dtype: str) -> Callable[[], float]:
    """FLOPs: products of two squares, two operations for each multiplication and addition."""
    first, second = (torch.randn(SIZE, SIZE).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(first)

    def run() -> float:
        for _ in range(TIMES):
            torch.mm(first, second, out=out)
        return TIMES * 2 * SIZE**3

    return run
