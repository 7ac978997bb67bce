"""One update of all parameters of a base-sized model by our LAMB, with gradients at hand."""

from collections.abc import Callable

import torch

from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.optim.groups import parameter_groups
from nezha_ds.optim.lamb import Lamb, LambSettings, whole_tensors


def side() -> Callable[[], float]:
    """Parameters updated."""
    model = NezhaForPreTraining(preset("base"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    slices = whole_tensors(model.named_parameters())
    optimizer = Lamb(parameter_groups(model, weight_decay=0.01), LambSettings())
    optimizer.bind(slices, len(slices), all_reduce=None)

    def run() -> float:
        optimizer.step()
        return sum(parameter.numel() for parameter in model.parameters())

    return run
