"""The largest micro-batch: doubling while it fits, then halving the gap. Each question costs one training step."""

import gc
from collections.abc import Callable

import torch


def largest(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest number up to `most` for which `fits`, within a sixteenth below; 0: not even 1.

    `fits` must hold for all smaller numbers where it holds.
    """
    low, high = 0, most + 1
    attempt = min(start, most)
    while high - low > max(1, low // 16):
        if fits(attempt):
            low = attempt
        else:
            high = attempt
        found = low > 0 and high <= most
        attempt = (low + high) // 2 if found or low == 0 else min(2 * low, most)
    return low


def fits_in_memory(step: Callable[[], None]) -> bool:
    """Whether a step ends without the device running out of memory; what it held is free again either way."""
    try:
        step()
    except torch.OutOfMemoryError:
        fitted = False
    else:
        fitted = True
    # Outside of `except`: there the traceback still holds the step's tensors.
    free_memory()
    return fitted


def free_memory() -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
