"""Forward, both losses and backward of our model, as the training loop calls them."""

from collections.abc import Callable

import torch

from nezha_ds.batch import Batch
from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from tests.bench.questions import random_batch


def side(layers: int, batch: int, length: int, dtype: str, size: str = "base") -> Callable[[], float]:
    """Samples: one step with dropout, gradients made anew."""
    model = NezhaForPreTraining(preset(size, num_hidden_layers=layers)).to(getattr(torch, dtype)).train()
    made = random_batch(batch, length)
    given = Batch(
        input_ids=made.ids,
        token_type_ids=made.types,
        lengths=torch.full((batch,), length),
        mlm_positions=made.positions,
        mlm_labels=made.labels,
        sample_ids=torch.arange(batch),
        next_sentence_labels=made.pairs,
    )
    objectives = ObjectiveSettings(mlm=1, nsp=1)

    def run() -> float:
        model.zero_grad(set_to_none=True)
        pretraining_losses(model(given), given, objectives).total.backward()
        return batch

    return run
