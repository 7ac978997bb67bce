"""Samples from mapped shards to rows of ids with their word flags, in the order of a run or in that of the plan."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nezha_ds.data.collate import gather
from nezha_ds.data.order import Order
from tests.bench.ours.samples import SPECIAL, dataset_of

TOKENS = 1 << 24


def side(folder: str, length: int, batch: int, shuffled: bool) -> Callable[[], float]:
    """Tokens, padding included: batches of (batch, length) as tensors, going on from run to run."""
    dataset = dataset_of(Path(folder), length)
    order = Order(dataset.plan.counts, seed=1)
    at = 0

    def run() -> float:
        nonlocal at
        for _ in range(TOKENS // (batch * length)):
            numbers = np.arange(at, at + batch)
            samples = order.sample(numbers) if shuffled else numbers % order.samples
            torch.from_numpy(gather(dataset.columns, dataset.slices(samples), length, SPECIAL).ids)
            at += batch
        return TOKENS

    return run
