"""NEZHA with the two heads of pretraining. B batch, P predicted positions, D hidden, V vocabulary.

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


class PreTrainingOutput(NamedTuple):
    """What the heads say of one batch."""

    mlm_logits: Tensor
    """(B, P, V): scores of the vocabulary at `batch.mlm_positions`, also at places that predict nothing."""
    nsp_logits: Tensor | None
    """(B, 2): scores of 0, the real next segment, and 1, a random one; None where the batch has no such labels."""


class NezhaForPreTraining(nn.Module):
    """The encoder and its heads; the decoder's matrix is the word embeddings."""

    def __init__(self, config: NezhaConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.encoder = Nezha(config)
        self.mlm = MaskedLanguageModelHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)
        initialise(self, config.initializer_range, seed)

    def forward(self, batch: Batch) -> PreTrainingOutput:
        """Scores for the batch's masked positions and, where it has labels for it, its segment pairs."""
        hidden = self.encoder(batch.input_ids, batch.token_type_ids, batch.lengths)
        mlm_logits = self.mlm(hidden, batch.mlm_positions, self.encoder.embeddings.words.weight)
        with_pairs = batch.next_sentence_labels is not None
        return PreTrainingOutput(mlm_logits, self.nsp(self.encoder.pool(hidden)) if with_pairs else None)


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
