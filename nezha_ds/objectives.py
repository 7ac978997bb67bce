"""What pretraining minimises: masked-language-model and next-sentence losses, from (output, batch).

Losses are means over the predictions of a micro-batch, in fp32 whatever the model's dtype: a softmax over 21,128 bf16
scores would lose the third digit. Nothing here waits for the device; counts and hits stay tensors, so that a caller
can sum them over micro-batches and ranks before it divides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.config import Settings
from nezha_ds.errors import ConfigError
from nezha_ds.model.heads import PreTrainingOutput


class ObjectiveSettings(Settings):
    """Weights of the losses in their sum; an objective of weight 0 is not computed."""

    mlm: float = Field(default=1.0, ge=0)
    """Masked-language model."""
    nsp: float = Field(default=0.0, ge=0)
    """Next sentence; needs samples cut as segment or sentence pairs."""

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if not (self.mlm or self.nsp):
            raise ValueError("all weights are 0, so there is nothing to minimise; set objective.mlm=1")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The objectives that are computed, with their weights."""
        return {name: weight for name in _OBJECTIVES if (weight := getattr(self, name))}


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of one micro-batch; all tensors are scalars on its device."""

    total: Tensor
    """The weighted sum, fp32: what backward starts from."""
    parts: dict[str, Tensor]
    """Mean loss per prediction in nats, by objective, detached."""
    counts: dict[str, Tensor]
    """Predictions, by objective, int64."""
    hits: dict[str, Tensor]
    """Predictions whose highest score is the label, by objective, int64."""

    @property
    def accuracy(self) -> dict[str, Tensor]:
        """Share of predictions that are right, by objective; 0 where there were none."""
        return {name: self.hits[name] / self.counts[name].clamp(min=1) for name in self.hits}


def _mlm_logits(output: PreTrainingOutput) -> Tensor:
    return output.mlm_logits.flatten(0, 1)


def _mlm_labels(batch: Batch) -> Tensor:
    return batch.mlm_labels.flatten()


def _nsp_logits(output: PreTrainingOutput) -> Tensor:
    # The model scores pairs where the batch has labels for them, which _nsp_labels has checked.
    assert output.nsp_logits is not None
    return output.nsp_logits


def _nsp_labels(batch: Batch) -> Tensor:
    if batch.next_sentence_labels is None:
        raise ConfigError(
            "objective.nsp is above 0, but these samples are not pairs; set objective.nsp=0, or cut the data "
            "into segment or sentence pairs"
        )
    return batch.next_sentence_labels


# Labels (predictions,) of a batch, and the scores (predictions, classes) that a model gives for them.
_OBJECTIVES: dict[str, tuple[Callable[[Batch], Tensor], Callable[[PreTrainingOutput], Tensor]]] = {
    "mlm": (_mlm_labels, _mlm_logits),
    "nsp": (_nsp_labels, _nsp_logits),
}


def count_predictions(batch: Batch, settings: ObjectiveSettings) -> dict[str, int]:
    """Predictions of a micro-batch by objective, while it is still on the CPU."""
    return {name: int((_OBJECTIVES[name][0](batch) != IGNORE).sum()) for name in settings.weights}


def pretraining_losses(
    output: PreTrainingOutput, batch: Batch, settings: ObjectiveSettings, shares: Mapping[str, float] | None = None
) -> Losses:
    """The weighted sum of all objectives with a weight, and its parts.

    `shares` are factors by objective that make a mean of micro-batch means the mean of all predictions; 1 if not given.
    """
    losses: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    hits: dict[str, Tensor] = {}
    for name in settings.weights:
        labels, logits = _OBJECTIVES[name][0](batch), _OBJECTIVES[name][1](output)
        counts[name] = (labels != IGNORE).sum()
        losses[name] = _mean_loss(logits.float(), labels, counts[name])
        hits[name] = (logits.detach().argmax(dim=-1) == labels).sum()
    factors = {name: weight * (shares or {}).get(name, 1.0) for name, weight in settings.weights.items()}
    total = torch.stack([factor * losses[name] for name, factor in factors.items()]).sum()
    return Losses(total, {name: loss.detach() for name, loss in losses.items()}, counts, hits)


def _mean_loss(logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """Mean cross entropy over labels that are not IGNORE; 0, not NaN, where a micro-batch has none."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / count.clamp(min=1)
