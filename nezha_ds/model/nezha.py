"""The encoder: embeddings, blocks, pooler. B batch, L length, D hidden, N heads, H head size, V vocabulary.

A BERT whose positions are one of five kinds (positions.py). By default it is NEZHA: word and segment embeddings are
summed, normalised and dropped out; what is known of order enters through the attention's relative positions alone, and
every residual is normalised after the sum (Post-LN). Pre-LN normalises what goes into a sublayer instead, keeps the
LayerNorm of the embeddings, and ends with one more, as DeepSpeed's bing_bert has it (modelingpreln.py).

Queries, keys and values are three weights rather than one fused matrix: LAMB takes one trust ratio per tensor, and the
published recipes took it of three. Their product is one on an accelerator, and three on a CPU (`PROJECTIONS`).

Blocks can forget what they computed and compute it again for backward (`checkpointed`): one of base width then keeps 6
MiB instead of 171 at 16 x 128 tokens in fp32, and 6 instead of 279 at 4 x 512. Dropout is drawn again from the state
that the generator had, so losses and gradients are the same to the bit.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nezha_ds.errors import DataError
from nezha_ds.model.attention import BODIES
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.dropout import dropout
from nezha_ds.model.positions import KINDS, Positions, check_length

Sublayer = Callable[[Tensor], Tensor]


class Nezha(nn.Module):
    """Token ids to token states."""

    checkpointed: int = 0
    """Blocks, from the first on, that keep their input alone for backward."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.positions = Positions(config) if KINDS[config.positions].relative else None
        self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.norm == "pre" else None

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, L), (B, L), (B,) int64 -> (B, L, D). States of padding are computed but mean nothing.

        DataError for a sequence that is longer than the positions reach, and for ids of another dtype.
        """
        check_length(self.config, input_ids.shape[1])
        hidden = self.embeddings(input_ids, token_type_ids)
        mask = padding_mask(lengths, input_ids.shape[1], hidden.dtype)
        # DeepSpeed leaves buffers in fp32 when it casts the weights. A bf16 model adds bf16 positions, as released.
        table = None if self.positions is None else self.positions.weight.to(hidden.dtype)
        for number, block in enumerate(self.blocks):
            if number < self.checkpointed and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, table, mask, use_reentrant=False)
            else:
                hidden = block(hidden, table, mask)
        return hidden if self.final_norm is None else self.final_norm(hidden)

    def pool(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, D): a summary of the sequence from the state of [CLS]."""
        return self.pooler(hidden[:, 0]).tanh()


class Embeddings(nn.Module):
    """Word plus segment, plus position where that is absolute, normalised."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.positions = None if KINDS[config.positions].relative else Positions(config)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, L, D). DataError for what are no ids; on a GPU an id out of range stops the device."""
        words = _looked_up(self.words, input_ids, "input_ids")
        summed = words + _looked_up(self.types, token_type_ids, "token_type_ids")
        if self.positions is not None:
            summed = summed + self.positions.weight[: input_ids.shape[1]].to(summed.dtype)
        return self.dropout(self.norm(summed))


def _looked_up(table: nn.Embedding, ids: Tensor, name: str) -> Tensor:
    if ids.dtype != torch.int64:
        raise DataError(f"{name} are of {ids.dtype}, and ids are of torch.int64; convert them with .long()")
    try:
        return table(ids)
    except IndexError:  # what torch raises on a CPU says neither which nor where
        raise DataError(
            f"{name} reach from {int(ids.min())} to {int(ids.max())}, and the model has rows for 0 to "
            f"{table.num_embeddings - 1}; is it the vocabulary that the model came with?"
        ) from None


class Block(nn.Module):
    """Attention, then a feed-forward layer; each adds to its input and is normalised after it, or before it."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.widen = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config)
        self.narrow = nn.Linear(config.intermediate_size, config.hidden_size)
        self.narrow_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.residual = RESIDUALS[config.norm]

    def forward(self, hidden: Tensor, table: Tensor | None, mask: Tensor) -> Tensor:
        """(B, L, D), (R, H) or None, (B, 1, 1, L) -> (B, L, D)."""
        hidden = self.residual(hidden, self.attention_norm, lambda x: self.dropout(self.attention(x, table, mask)))
        return self.residual(hidden, self.narrow_norm, lambda x: self.dropout(self._feed_forward(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.activation(self.widen(x)))


def _norm_after(hidden: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    return norm(hidden + sublayer(hidden))


def _norm_before(hidden: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    return hidden + sublayer(norm(hidden))


RESIDUALS: dict[str, Callable[[Tensor, nn.Module, Sublayer], Tensor]] = {"post": _norm_after, "pre": _norm_before}
"""By the name in `NezhaConfig.norm`."""


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

    def forward(self, hidden: Tensor, table: Tensor | None, mask: Tensor) -> Tensor:
        """(B, L, D), (R, H) or None, (B, 1, 1, L) -> (B, L, D)."""
        project = PROJECTIONS.get(hidden.device.type, projected_at_once)
        parts = project(hidden, (self.query, self.key, self.value), self.head_size**-0.5)
        # (B, L, D) -> (B, L, N, H) -> (B, N, L, H)
        query, key, value = (part.unflatten(2, (self.heads, self.head_size)).transpose(1, 2) for part in parts)
        mixed = self.body(query, key, value, table, mask, self.dropout)
        # (B, N, L, H) -> (B, L, N, H) -> (B, L, D)
        return self.output(mixed.transpose(1, 2).flatten(2))


def projected_one_by_one(hidden: Tensor, layers: Sequence[nn.Linear], scale: float) -> tuple[Tensor, ...]:
    """(B, L, D) -> each layer's (B, L, D), the first one's times `scale`."""
    first, *rest = (layer(hidden) for layer in layers)
    return (first * scale, *rest)


def projected_at_once(hidden: Tensor, layers: Sequence[nn.Linear], scale: float) -> tuple[Tensor, ...]:
    """The same in one product, with the scale in the weights, which are fewer than the states of a batch."""
    first, *rest = layers
    weight = torch.cat([first.weight * scale, *(layer.weight for layer in rest)])
    bias = torch.cat([first.bias * scale, *(layer.bias for layer in rest)])
    return F.linear(hidden, weight, bias).chunk(len(layers), dim=-1)


# One after the other is as fast on a CPU, and keeps no second copy of the weights for backward: see LOG.md.
PROJECTIONS = {"cpu": projected_one_by_one}
"""By device; at once on any other."""


class Dropout(nn.Module):
    """`dropout` while training, nothing in evaluation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return dropout(x, self.rate if self.training else 0.0)


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
        if isinstance(module, nn.Linear | nn.Embedding) or (isinstance(module, Positions) and module.is_learned):
            nn.init.normal_(module.weight, std=std, generator=generator)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "bias":
            nn.init.zeros_(parameter)
