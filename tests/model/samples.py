"""Small models and batches for the tests of this room."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.model.config import NezhaConfig, preset
from nezha_ds.model.heads import NezhaForPreTraining

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}


def small_config(**values: Any) -> NezhaConfig:
    """Two layers of width 32 over 71 words."""
    return preset("tiny", vocab_size=71, **(SIZES | values))


def lively_model(config: NezhaConfig, seed: int = 0) -> NezhaForPreTraining:
    """In evaluation mode, with weights so large, and biases so far from zero, that every term shows."""
    model = NezhaForPreTraining(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


def random_batch(lengths: list[int], vocab_size: int = 71, predictions: int = 3, pairs: bool = True) -> Batch:
    """Rows of the given lengths, padded with 0; the last place of every row but the first predicts nothing."""
    generator = torch.Generator().manual_seed(sum(lengths))

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(1, high, shape, generator=generator)

    size, length = len(lengths), max(lengths)
    is_token = torch.arange(length) < torch.tensor(lengths)[:, None]
    positions = torch.stack([torch.linspace(0, row - 1, predictions).long() for row in lengths])
    labels = draw(vocab_size, size, predictions)
    positions[1:, -1], labels[1:, -1] = 0, IGNORE
    return Batch(
        input_ids=draw(vocab_size, size, length) * is_token,
        token_type_ids=((torch.arange(length) >= length // 2) & is_token).long(),
        lengths=torch.tensor(lengths),
        mlm_positions=positions,
        mlm_labels=labels,
        sample_ids=torch.arange(size),
        next_sentence_labels=torch.arange(size) % 2 if pairs else None,
    )


def span_batch() -> Batch:
    """Three rows with spans: 3-5 and 9; 1-2, which begins behind [CLS]; none at all. Two places predict nothing."""
    batch = random_batch([14, 6, 3], predictions=6)
    positions = torch.tensor([[3, 4, 5, 9, 0, 0], [1, 2, 0, 0, 0, 0], [0] * 6])
    left = torch.tensor([[2, 2, 2, 8, 0, 0], [0, 0, 0, 0, 0, 0], [0] * 6])
    right = torch.tensor([[6, 6, 6, 10, 0, 0], [3, 3, 0, 0, 0, 0], [0] * 6])
    labels = batch.mlm_labels.clone().clamp(min=1)
    labels[positions == 0] = IGNORE
    return replace(batch, mlm_positions=positions, mlm_labels=labels, span_boundaries=torch.stack([left, right], dim=2))
