"""LAMB with fp32 masters beside a model in half precision, without DeepSpeed: every side gets the same.

What a step of training does besides forward and backward: gradients to fp32, two moments, the masters, and their copy
into the model. 16 bytes a parameter (weights 2, masters 4, moments 8, gradients 2), as under DeepSpeed on one device.
"""

# pyright: reportPrivateImportUsage=false

import torch
from torch import Tensor, nn

from nezha_ds.optim.lamb import Lamb, LambSettings, whole_tensors

SCALES = {torch.float16: 1024.0}
"""Loss scale; 1 where none is given."""


class MixedLamb:
    """The optimizer of one model on one device."""

    def __init__(self, model: nn.Module, settings: LambSettings | None = None) -> None:
        settings = settings or LambSettings(lr=1e-5)
        self._params = [p for p in model.parameters() if p.requires_grad]
        self.scale = SCALES.get(self._params[0].dtype, 1.0)
        self._masters = [p.detach().float().clone() for p in self._params]
        self._lamb = Lamb(
            [
                {"params": [m for m in self._masters if m.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [m for m in self._masters if m.ndim <= 1], "weight_decay": 0.0},
            ],
            settings,
        )
        named = ((str(number), master) for number, master in enumerate(self._masters))
        self._lamb.bind(whole_tensors(named), len(self._masters), None)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the scaled loss."""
        (loss * self.scale).backward()

    @torch.no_grad()
    def step(self) -> None:
        """Update masters and model; the gradients are gone after it."""
        for parameter, master in zip(self._params, self._masters, strict=True):
            if parameter.grad is not None:
                master.grad = parameter.grad.float().div_(self.scale)
        self._lamb.step()
        torch._foreach_copy_(self._params, self._masters)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Free them, also what a step left behind that ran out of memory."""
        for tensor in (*self._params, *self._masters):
            tensor.grad = None
