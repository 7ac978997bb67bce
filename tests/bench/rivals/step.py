"""Forward, both losses and backward of Hugging Face's NEZHA; labels are -100 where nothing is predicted."""

from collections.abc import Callable

import torch
from transformers import NezhaConfig, NezhaForPreTraining

from tests.bench.questions import VOCABULARY, random_batch


def side(layers: int, batch: int, length: int, dtype: str) -> Callable[[], float]:
    """Samples: one step with dropout, gradients made anew."""
    config = NezhaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers)
    model = NezhaForPreTraining(config).to(getattr(torch, dtype)).train()
    made = random_batch(batch, length)
    given = {
        "input_ids": made.ids,
        "token_type_ids": made.types,
        "attention_mask": torch.ones_like(made.ids),
        "labels": torch.full_like(made.ids, -100).scatter_(1, made.positions, made.labels),
        "next_sentence_label": made.pairs,
    }

    def run() -> float:
        model.zero_grad(set_to_none=True)
        model(**given).loss.backward()
        return batch

    return run
