"""What pretraining minimises, from (output, batch): masked words, next sentence, sentence order, spans.

Losses are means over the predictions of a micro-batch, in fp32 whatever the model's dtype: a softmax over 21,128 bf16
scores would lose the third digit. Nothing here waits for the device; counts and hits stay tensors, so that a caller
can sum them over micro-batches and ranks before it divides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

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
    sop: float = Field(default=0.0, ge=0)
    """Sentence order, ALBERT's: which of two segments came first; needs such pairs and data.pairing=sentence-order."""
    span: float = Field(default=0.0, ge=0)
    """What a masked span held, told from the tokens beside it; needs masking.method=span."""
    span_form: Literal["nezha", "spanbert"] = "nezha"
    """How the place in the span is told: by NEZHA's relative position encodings of it to both tokens beside the span,
    which are not learned, or by SpanBERT's learned offset from the left one."""

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if not self.weights:
            raise ValueError("all weights are 0, so there is nothing to minimise; set objective.mlm=1")
        if self.nsp and self.sop:
            raise ValueError(
                f"nsp {self.nsp} and sop {self.sop} want different second segments; set objective.nsp=0 or "
                "objective.sop=0"
            )
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The objectives that are computed, with their weights."""
        return {name: weight for name in OBJECTIVES if (weight := getattr(self, name))}

    @property
    def heads(self) -> dict[str, Any]:
        """What the model's config says of heads that these objectives need besides BERT's two."""
        return {"span_form": self.span_form if self.span else None, "sentence_order": self.sop > 0}


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


def _sop_logits(output: PreTrainingOutput) -> Tensor:
    assert output.sop_logits is not None, "the model's config was not told of ObjectiveSettings.heads"
    return output.sop_logits


def _sop_labels(batch: Batch) -> Tensor:
    if batch.sentence_order_labels is None:
        raise ConfigError(
            "objective.sop is above 0, but these samples are not pairs whose order is asked; set objective.sop=0, or "
            "data.format=segment-pair and data.pairing=sentence-order"
        )
    return batch.sentence_order_labels


def _span_logits(output: PreTrainingOutput) -> Tensor:
    assert output.span_logits is not None, "the model's config was not told of ObjectiveSettings.heads"
    return output.span_logits.flatten(0, 1)


def _span_labels(batch: Batch) -> Tensor:
    if batch.span_boundaries is None:
        raise ConfigError(
            "objective.span is above 0, but these masks do not tell what stands beside a span; set "
            "masking.method=span or objective.span=0"
        )
    return batch.mlm_labels.flatten()


# Labels (predictions,) of a batch, and the scores (predictions, classes) that a model gives for them.
OBJECTIVES: dict[str, tuple[Callable[[Batch], Tensor], Callable[[PreTrainingOutput], Tensor]]] = {
    "mlm": (_mlm_labels, _mlm_logits),
    "nsp": (_nsp_labels, _nsp_logits),
    "sop": (_sop_labels, _sop_logits),
    "span": (_span_labels, _span_logits),
}


def count_predictions(batch: Batch, settings: ObjectiveSettings) -> dict[str, int]:
    """Predictions of a micro-batch by objective, while it is still on the CPU."""
    return {name: int((OBJECTIVES[name][0](batch) != IGNORE).sum()) for name in settings.weights}


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
        labels, logits = OBJECTIVES[name][0](batch), OBJECTIVES[name][1](output)
        counts[name] = (labels != IGNORE).sum()
        losses[name] = _mean_loss(logits.float(), labels, counts[name])
        hits[name] = (logits.detach().argmax(dim=-1) == labels).sum()
    factors = {name: weight * (shares or {}).get(name, 1.0) for name, weight in settings.weights.items()}
    total = torch.stack([factor * losses[name] for name, factor in factors.items()]).sum()
    return Losses(total, {name: loss.detach() for name, loss in losses.items()}, counts, hits)


def _mean_loss(logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """Mean cross entropy over labels that are not IGNORE; 0, not NaN, where a micro-batch has none."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / count.clamp(min=1)
