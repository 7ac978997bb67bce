"""Batch: the one contract between data and model.

B samples of the batch, L length of each, P masked positions that each may have (fixed by L, so shapes are static and
the decoder runs on P positions instead of L).
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

IGNORE = -100
"""The label of a place in (B, P) that holds no prediction: `cross_entropy`'s own default for `ignore_index`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of masked samples. All tensors are int64; what is absent is None."""

    input_ids: Tensor
    """(B, L): [CLS] … [SEP], masked, padded with [PAD]."""
    token_type_ids: Tensor
    """(B, L): 0 for the first segment, 1 for the second, 0 on padding."""
    lengths: Tensor
    """(B,): tokens before the padding."""
    mlm_positions: Tensor
    """(B, P): where the predictions are, ascending; 0 where a sample has fewer than P."""
    mlm_labels: Tensor
    """(B, P): the original ids; IGNORE where a sample has fewer than P."""
    sample_ids: Tensor
    """(B,): the plan's number of each sample, for audits and replays."""
    next_sentence_labels: Tensor | None = None
    """(B,): 0 the real next segment, 1 a random one; IGNORE for a sample without text."""
    sentence_order_labels: Tensor | None = None
    """(B,): 0 two segments in their order, 1 swapped; IGNORE for a sample without text or of one segment."""
    span_boundaries: Tensor | None = None
    """(B, P, 2): the positions beside the span that a prediction lies in, left and right; 0 without a prediction."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; copies do not wait for each other where the memory is pinned."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **moved)

    @property
    def samples(self) -> int:
        """B."""
        return self.input_ids.shape[0]
