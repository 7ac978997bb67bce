"""The encoder for transformers: its modules carry Hugging Face's names, its attention is `model.attention`'s.

Positions and LayerNorms are as `model.config` has them: NEZHA's own by default.

B batch, L length, D hidden, N heads, H head size, R rows of the table.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from nezha_ds.model.attention import table_attention
from nezha_ds.model.hf import RELEASED, VARIANT
from nezha_ds.model.positions import KINDS, PositionKind, Positions, check_length
from nezha_ds.model.sound import refuse_unsound

_OF_OTHERS = ("head_mask", "encoder_hidden_states", "encoder_attention_mask", "past_key_values", "position_ids")
"""What models of transformers are given that has no meaning here: refused, since its effect would be missed."""


@strict
class NezhaConfig(PreTrainedConfig):
    """What config.json says; the defaults are those of the Chinese base model."""

    model_type = "nezha"

    vocab_size: int = 21128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    max_relative_position: int = 64
    positions: PositionKind = "functional-relative"
    norm: Literal["post", "pre"] = "post"
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | int | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = False
    tie_word_embeddings: bool = True

    def to_dict(self) -> dict[str, Any]:
        """What config.json says; a model that version 4's NEZHA would misread has another type."""
        kind = "nezha" if (self.positions, self.norm) == RELEASED else VARIANT
        return super().to_dict() | {"model_type": kind}


class NezhaEmbeddings(nn.Module):
    """Words and segments, and positions where they are absolute, normalised."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.position_embeddings = None if KINDS[config.positions].relative else Positions(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, L, D), (B, L) -> (B, L, D)."""
        summed = words + self.token_type_embeddings(token_type_ids)
        if self.position_embeddings is not None:
            summed = summed + self.position_embeddings.weight[: words.shape[1]].to(words.dtype)
        return self.dropout(self.LayerNorm(summed))


class NezhaSelfAttention(nn.Module):
    """Projections and the attention body."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, table: Tensor | None, mask: Tensor, want: bool) -> tuple[Tensor, Tensor | None]:
        """(B, L, D), (R, H) or None, (B, 1, 1, L) -> (B, L, D), and (B, N, L, L) probabilities where wanted."""
        query, key, value = (self._split(part(hidden)) for part in (self.query, self.key, self.value))
        kept: list[Tensor] = []

        def dropout(probabilities: Tensor) -> Tensor:
            dropped = F.dropout(probabilities, self.config.attention_probs_dropout_prob, self.training)
            if not want:
                return dropped
            if table is None:
                kept.append(dropped)
                return dropped
            kept.append(dropped.flip(3))  # with a table the keys come in reverse
            return kept[0].flip(3)  # so that gradients pass through what is handed out

        mixed = table_attention(query * query.shape[3] ** -0.5, key, value, table, mask, dropout)
        # (B, N, L, H) -> (B, L, N, H) -> (B, L, D)
        return mixed.transpose(1, 2).flatten(2), kept[0] if kept else None

    def _split(self, x: Tensor) -> Tensor:
        # (B, L, D) -> (B, L, N, H) -> (B, N, L, H)
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class NezhaOutput(nn.Module):
    """A projection back to D, added to what it began from, and normalised there or before the sublayer."""

    def __init__(self, config: NezhaConfig, width: int) -> None:
        super().__init__()
        self.norm_first = config.norm == "pre"
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def before(self, hidden: Tensor) -> Tensor:
        """What goes into the sublayer."""
        return self.LayerNorm(hidden) if self.norm_first else hidden

    def forward(self, changed: Tensor, hidden: Tensor) -> Tensor:
        """(B, L, width), (B, L, D) -> (B, L, D)."""
        summed = hidden + self.dropout(self.dense(changed))
        return summed if self.norm_first else self.LayerNorm(summed)


class NezhaDense(nn.Module):
    """A projection and the activation."""

    def __init__(self, config: NezhaConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, width)."""
        return self.activation(self.dense(hidden))


class NezhaAttention(nn.Module):
    """Attention with its residual."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.self = NezhaSelfAttention(config)
        self.output = NezhaOutput(config, config.hidden_size)

    def forward(self, hidden: Tensor, table: Tensor | None, mask: Tensor, want: bool) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.output(self.self(self.output.before(hidden), table, mask, want)[0], hidden)


class NezhaLayer(GradientCheckpointingLayer):
    """A block."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.attention = NezhaAttention(config)
        self.intermediate = NezhaDense(config, config.intermediate_size)
        self.output = NezhaOutput(config, config.intermediate_size)

    def forward(self, hidden: Tensor, table: Tensor | None, mask: Tensor, want: bool) -> Tensor:
        """(B, L, D), (R, H) or None, (B, 1, 1, L) -> (B, L, D)."""
        hidden = self.attention(hidden, table, mask, want)
        return self.output(self.intermediate(self.output.before(hidden)), hidden)


class NezhaEncoder(nn.Module):
    """The blocks, and the table that they share."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([NezhaLayer(config) for _ in range(config.num_hidden_layers)])
        self.relative_positions = Positions(config) if KINDS[config.positions].relative else None
        is_first = config.norm == "pre"
        self.FinalLayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if is_first else None

    def forward(self, hidden: Tensor, mask: Tensor, want: bool) -> Tensor:
        """(B, L, D), (B, 1, 1, L) -> (B, L, D)."""
        table = None if self.relative_positions is None else self.relative_positions.weight.to(hidden.dtype)
        for layer in self.layer:
            hidden = layer(hidden, table, mask, want)
        return hidden if self.FinalLayerNorm is None else self.FinalLayerNorm(hidden)


class NezhaPooler(nn.Module):
    """The first token's state for a whole sequence."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, D)."""
        return torch.tanh(self.dense(hidden[:, 0]))


class NezhaPreTrainedModel(PreTrainedModel):
    """What transformers asks of every model of a kind."""

    config_class = NezhaConfig
    base_model_prefix = "nezha"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NezhaEmbeddings", "NezhaLayer"]  # noqa: RUF012 - transformers' own name and form
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": NezhaLayer,
        "attentions": NezhaSelfAttention,
    }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As every model's; CheckpointError for weights that are NaN or infinite."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        floats = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
        refuse_unsound(floats, str(pretrained_model_name_or_path))
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Positions):
            config = cast(NezhaConfig, self.config)
            if module.is_learned:
                init.normal_(module.weight, std=config.initializer_range)
            else:  # no file has computed ones
                init.copy_(module.weight, KINDS[config.positions].rows(config))


class NezhaModel(NezhaPreTrainedModel):
    """The encoder: states (B, L, D), and with a pooler the first one's (B, D)."""

    def __init__(self, config: NezhaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise ValueError("NEZHA is an encoder; set is_decoder and add_cross_attention to false")
        self.embeddings = NezhaEmbeddings(config)
        self.encoder = NezhaEncoder(config)
        self.pooler = NezhaPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The words."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Other words."""
        self.embeddings.word_embeddings = cast(nn.Embedding, value)

    def _words(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        if ids.is_floating_point():
            raise ValueError(f"input_ids are {ids.dtype}, not whole numbers; vectors go into inputs_embeds")
        try:
            return self.embeddings.word_embeddings(ids)
        except IndexError:
            raise IndexError(
                f"input_ids are from {ids.min()} to {ids.max()}, outside a vocabulary of "
                f"{self.embeddings.word_embeddings.weight.shape[0]}; use the tokenizer that the model came with"
            ) from None

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """(B, L) ids or (B, L, D) words; attention_mask (B, L), 0 on padding, or (B, L, L)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        if refused := [name for name in _OF_OTHERS if kwargs.get(name) is not None]:
            raise ValueError(f"NEZHA's encoder takes no {', '.join(refused)}")
        words = self._words(input_ids) if input_ids is not None else cast(Tensor, inputs_embeds)
        shape, device = words.shape[:2], words.device
        check_length(cast(NezhaConfig, self.config), words.shape[1])
        if token_type_ids is None:
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=device)
        if attention_mask is None:
            attention_mask = torch.ones(shape, device=device)
        hidden = self.embeddings(words, token_type_ids)
        want = bool(kwargs.get("output_attentions", self.config.output_attentions))
        hidden = self.encoder(hidden, additive(attention_mask, hidden.dtype), want)
        pooled = self.pooler(hidden) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L) or (B, L, L), 1 to be seen -> (B, 1, 1 or L, L), 0 to be seen and the dtype's lowest number otherwise."""
    seen = (mask[:, None, None] if mask.dim() == 2 else mask[:, None]).bool()
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
