"""A batch to train on, the same for both sides; torch only, since it runs in the rivals' environment too."""

from typing import NamedTuple

import torch
from torch import Tensor

VOCABULARY = 21128


class RandomBatch(NamedTuple):
    """B full samples of length L with P predictions each."""

    ids: Tensor
    """(B, L)"""
    types: Tensor
    """(B, L): two segments of half the length."""
    positions: Tensor
    """(B, P): ascending."""
    labels: Tensor
    """(B, P)"""
    pairs: Tensor
    """(B,): 0 or 1."""


def predictions(length: int) -> int:
    """P: 15% of the places."""
    return round(0.15 * length)


def random_batch(batch: int, length: int) -> RandomBatch:
    """Speed and memory do not depend on what the ids are."""
    generator = torch.Generator().manual_seed(1)
    places = torch.rand(batch, length, generator=generator).argsort(dim=1)[:, : predictions(length)]
    return RandomBatch(
        ids=torch.randint(1000, VOCABULARY, (batch, length), generator=generator),
        types=(torch.arange(length) >= length // 2).long().repeat(batch, 1),
        positions=places.sort(dim=1).values,
        labels=torch.randint(1000, VOCABULARY, places.shape, generator=generator),
        pairs=torch.randint(2, (batch,), generator=generator),
    )
