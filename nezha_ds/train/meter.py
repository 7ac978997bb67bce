"""Losses and hits between two log steps, kept on the device until somebody asks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nezha_ds.objectives import Losses
from nezha_ds.train.ranks import Ranks


@dataclass(frozen=True)
class Measured:
    """Means over all ranks' predictions since the last `take`."""

    loss: float
    """The weighted sum that is minimised, mean over micro-batches."""
    losses: dict[str, float]
    """Nats per prediction, by objective."""
    mlm_accuracy: float
    predictions: int
    """Masked tokens."""


class LossMeter:
    """Adds up without waiting for the device; `take` waits once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: Losses) -> None:
        """Take in a micro-batch. One without predictions, which pads an evaluation, weighs nothing."""
        seen = (sum(losses.counts.values()) > 0).double()  # type: ignore[union-attr]
        self._add("total", losses.total.detach().double() * seen)
        self._add("batches", seen)
        for name, loss in losses.parts.items():
            self._add(f"loss/{name}", loss.double() * losses.counts[name])
            self._add(f"count/{name}", losses.counts[name].double())
            self._add(f"hits/{name}", losses.hits[name].double())

    def take(self, ranks: Ranks) -> Measured:
        """The means over all ranks, and a fresh start; collective, and the one wait for the device."""
        names = list(self._sums)
        values = torch.stack([self._sums[name] for name in names]).cpu()  # device-to-host: at log steps only
        sums = dict(zip(names, ranks.add_up(values).tolist(), strict=True))
        self._sums = {}
        parts = [name.removeprefix("loss/") for name in names if name.startswith("loss/")]
        return Measured(
            loss=sums["total"] / max(sums["batches"], 1),
            losses={name: sums[f"loss/{name}"] / max(sums[f"count/{name}"], 1) for name in parts},
            mlm_accuracy=sums.get("hits/mlm", 0.0) / max(sums.get("count/mlm", 0.0), 1),
            predictions=int(sums.get("count/mlm", 0)),
        )

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value
