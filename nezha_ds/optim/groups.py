"""Which parameters decay: all but biases and LayerNorms, as BERT has it."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """One group that decays (matrices and embeddings) and one that does not (vectors), each named.

    Every bias and every LayerNorm gain is a vector and nothing else is: the shape is the rule. Tied weights come once.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"name": "decay", "params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
