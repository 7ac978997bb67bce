"""Losses and hits between two log steps, kept on the device until somebody asks; and what a micro-batch counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nezha_ds.batch import Batch
from nezha_ds.objectives import Losses, ObjectiveSettings, count_predictions
from nezha_ds.train.ranks import Ranks


@dataclass(frozen=True)
class Measured:
    """Means over all ranks' predictions since the last `take`, in nats."""

    loss: float
    """The weighted sum that is minimised."""
    losses: dict[str, float]
    """By objective."""
    accuracies: dict[str, float]
    """Share of predictions that were right, by objective."""
    predictions: dict[str, int]
    """By objective."""


class LossMeter:
    """Adds up without waiting for the device; `take` and `read` wait once."""

    def __init__(self, objective: ObjectiveSettings) -> None:
        self._weights = objective.weights
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: Losses) -> None:
        """Take in a micro-batch; one without predictions, which pads an evaluation, weighs nothing."""
        for name, loss in losses.parts.items():
            self._add(f"loss/{name}", loss.double() * losses.counts[name])
            self._add(f"count/{name}", losses.counts[name].double())
            self._add(f"hits/{name}", losses.hits[name].double())

    def take(self, ranks: Ranks) -> Measured:
        """The means over all ranks, and a fresh start; collective, and the one wait for the device."""
        own = self.read()
        sums = ranks.add_up(torch.tensor(list(own.values()), dtype=torch.float64)).tolist()
        return self.means(dict(zip(own, sums, strict=True)))

    def read(self) -> dict[str, float]:
        """This rank's sums by name, the same names on every rank, and a fresh start; waits for the device."""
        values = torch.stack(list(self._sums.values())).tolist()  # device-to-host: at log steps only
        sums, self._sums = dict(zip(self._sums, values, strict=True)), {}
        return sums

    def means(self, sums: Mapping[str, float]) -> Measured:
        """What the sums of all ranks' `read` mean."""
        counts = {name: int(sums[f"count/{name}"]) for name in self._weights}
        losses = {name: sums[f"loss/{name}"] / max(count, 1) for name, count in counts.items()}
        return Measured(
            loss=sum(weight * losses[name] for name, weight in self._weights.items()),
            losses=losses,
            accuracies={name: sums[f"hits/{name}"] / max(count, 1) for name, count in counts.items()},
            predictions=counts,
        )

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value


def prediction_shares(batches: Sequence[Batch], objective: ObjectiveSettings, ranks: Ranks) -> list[dict[str, float]]:
    """For each micro-batch of a step, by objective, the factor that its mean loss takes; collective.

    DeepSpeed averages over micro-batches and ranks. A micro-batch with more predictions than the average must weigh
    more, or the gradient would depend on how a batch is cut: with these factors it is that of the mean over all
    predictions of the global batch, whatever the micro-batch and the world size.
    """
    counts = [count_predictions(batch, objective) for batch in batches]
    own = torch.tensor([[count[name] for name in objective.weights] for count in counts], dtype=torch.float64)
    average = ranks.add_up(own.mean(dim=0)) / ranks.world.world_size
    factors = own / average.clamp(min=1e-9)
    return [dict(zip(objective.weights, row, strict=True)) for row in factors.tolist()]
