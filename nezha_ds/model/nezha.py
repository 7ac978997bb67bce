"""The encoder: embeddings, blocks, pooler. B batch, L length, D hidden, N heads, H head size, V vocabulary.

A post-LayerNorm BERT without absolute positions: word and segment embeddings are summed, normalised and dropped out;
what is known of order enters through the attention's relative positions alone.

Queries, keys and values are three weights rather than one fused matrix: LAMB takes one trust ratio per tensor, and the
published recipes took it of three.
"""

import torch
from torch import Tensor, nn

from nezha_ds.model.attention import BODIES
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.dropout import Dropout
from nezha_ds.model.relative import relative_table


class Nezha(nn.Module):
    """Token ids to token states."""

    table: Tensor

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        # A buffer, so that it moves with the weights; not persistent, since it is not learned.
        table = relative_table(config.max_relative_position, config.head_size)
        self.register_buffer("table", table, persistent=False)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, L), (B, L), (B,) int64 -> (B, L, D). States of padding are computed but mean nothing."""
        hidden = self.embeddings(input_ids, token_type_ids)
        mask = padding_mask(lengths, input_ids.shape[1], hidden.dtype)
        # DeepSpeed leaves buffers in fp32 when it casts the weights. A bf16 model adds bf16 positions, as released.
        table = self.table.to(hidden.dtype)
        for block in self.blocks:
            hidden = block(hidden, table, mask)
        return hidden

    def pool(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, D): a summary of the sequence from the state of [CLS]."""
        return self.pooler(hidden[:, 0]).tanh()


class Embeddings(nn.Module):
    """Word plus segment, normalised."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, L, D)."""
        return self.dropout(self.norm(self.words(input_ids) + self.types(token_type_ids)))


class Block(nn.Module):
    """Attention, then a feed-forward layer; each adds to its input and is normalised after it."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.widen = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config)
        self.narrow = nn.Linear(config.intermediate_size, config.hidden_size)
        self.narrow_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D), (R, H), (B, 1, 1, L) -> (B, L, D)."""
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, table, mask)))
        added = self.narrow(self.activation(self.widen(hidden)))
        return self.narrow_norm(hidden + self.dropout(added))


class Attention(nn.Module):
    """The projections around an attention body."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_size = config.head_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.body = BODIES[config.attention]

    def forward(self, hidden: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D), (R, H), (B, 1, 1, L) -> (B, L, D)."""
        query = self._split(self.query(hidden)) * self.head_size**-0.5
        key, value = self._split(self.key(hidden)), self._split(self.value(hidden))
        mixed = self.body(query, key, value, table, mask, self.dropout)
        # (B, N, L, H) -> (B, L, N, H) -> (B, L, D)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        # (B, L, D) -> (B, L, N, H) -> (B, N, L, H)
        return x.unflatten(2, (self.heads, self.head_size)).transpose(1, 2)


def activation(config: NezhaConfig) -> nn.GELU:
    """The configured GELU."""
    return nn.GELU(approximate="tanh" if config.hidden_act == "gelu_tanh" else "none")


def padding_mask(lengths: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """(B,) -> (B, 1, 1, L): 0 on tokens, the lowest finite number of the dtype on padding, to be added to scores."""
    is_padding = torch.arange(length, device=lengths.device) >= lengths[:, None]
    return torch.zeros_like(is_padding, dtype=dtype).masked_fill(is_padding, torch.finfo(dtype).min)[:, None, None]


def initialise(model: nn.Module, std: float, seed: int) -> None:
    """Fill all weights in place from one generator: normal(0, std) matrices, LayerNorm 1, biases and [PAD] 0."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std, generator=generator)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "bias":
            nn.init.zeros_(parameter)
