"""One update of all parameters of a base-sized model by a public optimizer, with gradients at hand."""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import Lamb
from transformers import NezhaConfig, NezhaForPreTraining

from tests.bench.questions import VOCABULARY

# timm's clips gradients by itself unless told otherwise, which ours leaves to the engine.
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "timm": lambda groups: Lamb(groups, max_grad_norm=None),
    "timm-foreach": lambda groups: Lamb(groups, max_grad_norm=None, foreach=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, foreach=True),
}


def side(name: str) -> Callable[[], float]:
    """Parameters updated."""
    parameters = list(NezhaForPreTraining(NezhaConfig(vocab_size=VOCABULARY)).parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[name](groups)

    def run() -> float:
        optimizer.step()
        return sum(parameter.numel() for parameter in parameters)

    return run
