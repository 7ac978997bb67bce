"""NEZHA with the heads of pretraining. B batch, P predicted positions, D hidden, V vocabulary.

The masked-language and the next-sentence head are always there, as BERT's folders have them; a head for spans or for
the order of sentences is where the config says so.

The masked-language-model head sees the P predicted positions only, not all L: at L = 128 that is 20 of 128 rows of the
product with the vocabulary, which is the largest of a four-layer model.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nezha_ds.batch import Batch
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.nezha import Nezha, activation, initialise
from nezha_ds.model.span import SpanHead


class PreTrainingOutput(NamedTuple):
    """What the heads say of one batch."""

    mlm_logits: Tensor
    """(B, P, V): scores of the vocabulary at `batch.mlm_positions`, also at places that predict nothing."""
    nsp_logits: Tensor | None
    """(B, 2): scores of 0, the real next segment, and 1, a random one; None where the batch has no such labels."""
    sop_logits: Tensor | None = None
    """(B, 2): scores of 0, the segments in their order, and 1, swapped; None without the head or without labels."""
    span_logits: Tensor | None = None
    """(B, P, V): what `mlm_logits` are, from the tokens beside the spans; None without the head or the boundaries."""


class NezhaForPreTraining(nn.Module):
    """The encoder and its heads; the decoder's matrix is the word embeddings."""

    def __init__(self, config: NezhaConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.encoder = Nezha(config)
        self.mlm = MaskedLanguageModelHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)
        # Last, so that the weights before them are drawn alike with and without them.
        self.sop = nn.Linear(config.hidden_size, 2) if config.sentence_order else None
        self.span = SpanHead(config) if config.span_form else None
        initialise(self, config.initializer_range, seed)

    def forward(self, batch: Batch) -> PreTrainingOutput:
        """Scores for the batch's masked positions and, where it has labels or boundaries, its pairs and its spans."""
        hidden = self.encoder(batch.input_ids, batch.token_type_ids, batch.lengths)
        words = self.encoder.embeddings.words.weight
        nsp_logits = sop_logits = span_logits = None
        if batch.next_sentence_labels is not None:
            nsp_logits = self.nsp(self.encoder.pool(hidden))
        if self.sop is not None and batch.sentence_order_labels is not None:
            sop_logits = self.sop(self.encoder.pool(hidden))
        if self.span is not None and batch.span_boundaries is not None:
            span_logits = self.span(hidden, batch.mlm_positions, batch.span_boundaries, words)
        mlm_logits = self.mlm(hidden, batch.mlm_positions, words)
        return PreTrainingOutput(mlm_logits, nsp_logits, sop_logits, span_logits)


class MaskedLanguageModelHead(nn.Module):
    """From states at given positions to scores of the vocabulary."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, positions: Tensor, words: Tensor) -> Tensor:
        """(B, L, D), (B, P), (V, D) -> (B, P, V)."""
        # (B, P) -> (B, P, D): the position repeated along the features, without a copy.
        index = positions[..., None].expand(-1, -1, hidden.shape[2])
        states = self.norm(self.activation(self.dense(hidden.gather(1, index))))
        return F.linear(states, words, self.bias)
