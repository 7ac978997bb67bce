"""What pretraining minimises: masked-language-model and next-sentence losses, from (output, batch).

Losses are means over the predictions of a micro-batch, in fp32 whatever the model's dtype: a softmax over 21,128 bf16
scores would lose the third digit. Nothing here waits for the device; counts and hits stay tensors, so that a caller
can sum them over micro-batches and ranks before it divides.
"""

from collections.abc import Callable
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

    mlm: float = Field(1.0, ge=0)
    """Masked-language model."""
    nsp: float = Field(0.0, ge=0)
    """Next sentence; needs samples cut as segment or sentence pairs."""

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if not (self.mlm or self.nsp):
            raise ValueError("all weights are 0, so there is nothing to minimise; set objective.mlm=1")
        return self


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


def _mlm(output: PreTrainingOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    return output.mlm_logits.flatten(0, 1), batch.mlm_labels.flatten()


def _nsp(output: PreTrainingOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    if output.nsp_logits is None or batch.next_sentence_labels is None:
        raise ConfigError(
            "objective.nsp is above 0, but these samples are not pairs; set objective.nsp=0, or cut the data "
            "into segment or sentence pairs"
        )
    return output.nsp_logits, batch.next_sentence_labels


# Each gives scores (predictions, classes) and labels (predictions,).
_OBJECTIVES: dict[str, Callable[[PreTrainingOutput, Batch], tuple[Tensor, Tensor]]] = {"mlm": _mlm, "nsp": _nsp}


def pretraining_losses(output: PreTrainingOutput, batch: Batch, settings: ObjectiveSettings) -> Losses:
    """The weighted sum of all objectives with a weight, and its parts."""
    weights = {name: weight for name, weight in settings.model_dump().items() if weight}
    losses: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    hits: dict[str, Tensor] = {}
    for name in weights:
        logits, labels = _OBJECTIVES[name](output, batch)
        counts[name] = (labels != IGNORE).sum()
        losses[name] = _mean_loss(logits.float(), labels, counts[name])
        hits[name] = (logits.detach().argmax(dim=-1) == labels).sum()
    total = torch.stack([weight * losses[name] for name, weight in weights.items()]).sum()
    return Losses(total, {name: loss.detach() for name, loss in losses.items()}, counts, hits)


def _mean_loss(logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """Mean cross entropy over labels that are not IGNORE; 0, not NaN, where a micro-batch has none."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / count.clamp(min=1)
