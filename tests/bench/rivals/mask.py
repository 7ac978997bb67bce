"""Hugging Face's collators over samples that are in memory, as lists of numbers."""

from collections.abc import Callable
from itertools import islice

from tests.bench.rivals.samples import collator, example, samples

TOKENS = 1 << 18
BATCH = 32


def side(folder: str, length: int, method: str = "whole-word") -> Callable[[], float]:
    """Tokens, padding included."""
    collate = collator(folder, method)
    examples = [example(*one) for one in islice(samples(folder, length), TOKENS // length)]
    if method == "character":
        for one in examples:
            del one["chinese_ref"]  # which that collator does not know

    def run() -> float:
        for start in range(0, len(examples), BATCH):
            collate(examples[start : start + BATCH])
        return len(examples) * length

    return run
