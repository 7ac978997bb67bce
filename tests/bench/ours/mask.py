"""Masks over rows that are in memory, in blocks as the loader makes them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nezha_ds.data.masking import mask
from nezha_ds.data.pipeline import BLOCK
from nezha_ds.data.randomness import sample_keys
from nezha_ds.data.settings import MaskingSettings
from tests.bench.ours.samples import RANDOM_IDS, SPECIAL, rows_of

BLOCKS = 96


def side(folder: str, length: int, method: str = "whole-word") -> Callable[[], float]:
    """Tokens, padding included; new keys, and so new masks, each time."""
    settings = MaskingSettings.model_validate({"method": method})
    rows = rows_of(Path(folder), length, count=BLOCK // length)
    samples = np.arange(len(rows.ids))
    epoch = 0

    def run() -> float:
        nonlocal epoch
        for _ in range(BLOCKS):
            keys = sample_keys(1, np.full_like(samples, epoch), samples)
            mask(rows, keys, settings, settings.predictions(length), SPECIAL.mask, RANDOM_IDS)
            epoch += 1
        return BLOCKS * rows.ids.size

    return run
