"""Shards to finished masked batches in the order of a run, through the loader and its thread as training uses it."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.data.settings import MaskingSettings
from nezha_ds.world import World
from tests.bench.ours.samples import RANDOM_IDS, SPECIAL, settings

TOKENS = 1 << 24


def side(folder: str, length: int, batch: int, method: str = "whole-word", **data: Any) -> Callable[[], float]:
    """Tokens, padding included. Each run makes a new loader, so that nothing made ahead counts; shards are verified."""
    chosen = settings(Path(folder), length, **data)
    masking = MaskingSettings.model_validate({"method": method})
    first = 0

    def run() -> float:
        nonlocal first
        stream = Stream(chosen, masking, 1, batch, World(), SPECIAL, RANDOM_IDS)
        with build_loader(stream, global_batch=batch, first=first) as loader:
            tokens = sum(made.input_ids.numel() for made in islice(loader, TOKENS // (batch * length)))
            first = loader.position
        return tokens

    return run
