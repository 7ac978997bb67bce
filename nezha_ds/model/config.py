"""What a NEZHA model is made of: Hugging Face's names for every size, so that a config.json reads either way.

`ModelSettings` is the recipe's `[model]` section: a preset fills whatever the section does not set itself, so
`preset = "base"` with `num_hidden_layers = 6` is a six-layer base. Written back, the section holds every value and
reads the same without the presets. `NezhaConfig` is that plus the two numbers that the tokenizer decides.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nezha_ds.config import Settings, build, nearest
from nezha_ds.model.positions import PositionKind

BERT_CHINESE_VOCABULARY = 21128

PRESETS: dict[str, dict[str, int]] = {
    # 102M parameters with both heads, 326M, 19M and 9M. Base is what the fields below say.
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
    "tiny": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
}

_TRAINING_A_TABLE = ("auto", "table", "reference")


class ModelSettings(Settings):
    """Sizes and rates of the model; the vocabulary's size comes from the shards."""

    preset: str = "base"
    """`base`, `large`, `small` or `tiny`: the sizes of whatever is not set here."""
    hidden_size: int = Field(default=768, gt=0)
    """D: width of the token states."""
    num_hidden_layers: int = Field(default=12, gt=0)
    """Transformer blocks."""
    num_attention_heads: int = Field(default=12, gt=0)
    """N: heads; each has D / N features, an even number."""
    intermediate_size: int = Field(default=3072, gt=0)
    """Width inside the feed-forward layers."""
    hidden_act: Literal["gelu", "gelu_tanh"] = "gelu"
    """`gelu` is the exact one (erf), as in the PyTorch releases; `gelu_tanh` that of the TensorFlow code."""
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on embeddings and on what each sublayer adds."""
    attention_probs_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on attention probabilities."""
    max_position_embeddings: int = Field(default=512, gt=0)
    """Lmax: longest sequence, in tokens. NEZHA has no weights that depend on it; absolute positions are that many."""
    max_relative_position: int = Field(default=64, gt=0)
    """K: distances beyond K tokens look like K. 64 in the Chinese models, 127 in the English one."""
    positions: PositionKind = "functional-relative"
    """Where order comes from: `functional-relative` is NEZHA's, `learned-absolute` BERT's (positions.py)."""
    norm: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum, as in BERT, or before each sublayer and once more at the end."""
    type_vocab_size: int = Field(default=2, gt=0)
    """Segments that a token may belong to."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of fresh weights."""
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    """Added to the variance in every LayerNorm."""
    attention: Literal["auto", "banded", "table", "reference"] = "auto"
    """Which body computes the attention; `auto` takes the fastest one for the device. They differ in speed only."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("preset", "base")
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not known{nearest(str(name), PRESETS)}")
        return PRESETS[name] | values

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = "
                f"{self.num_attention_heads}; choose heads that divide it"
            )
        if self.head_size % 2:
            raise ValueError(
                f"hidden_size / num_attention_heads = {self.head_size} is odd, and relative positions are pairs of a "
                "sine and a cosine; choose an even head size, usually 64"
            )
        return self

    @model_validator(mode="after")
    def _body_trains_the_table(self) -> Self:
        if self.positions == "learned-relative" and self.attention not in _TRAINING_A_TABLE:
            raise ValueError(
                f"attention = {self.attention!r} gives no gradient to a table, and positions = 'learned-relative' "
                f"learn one; choose attention = {' or '.join(map(repr, _TRAINING_A_TABLE))}"
            )
        return self

    @property
    def head_size(self) -> int:
        """H = D / N."""
        return self.hidden_size // self.num_attention_heads

    def resolve(self, vocab_size: int, pad_token_id: int = 0, **heads: Any) -> "NezhaConfig":
        """The whole description of a model whose vocabulary has `vocab_size` entries, that one for padding.

        `heads` are those that an objective needs besides BERT's two: `ObjectiveSettings.heads`.
        """
        told = {"vocab_size": vocab_size, "pad_token_id": pad_token_id, **heads}
        return build(NezhaConfig, self.model_dump() | told, origin="[model]")


class NezhaConfig(ModelSettings):
    """Everything that decides the shape of the weights and what is computed from them."""

    vocab_size: int = Field(gt=0)
    """V: entries of the vocabulary."""
    pad_token_id: int = Field(default=0, ge=0)
    """Id of [PAD]; its embedding starts at zero and gets no gradient from the input side."""
    span_form: Literal["nezha", "spanbert"] | None = None
    """The form of the head that predicts spans, where there is one."""
    sentence_order: bool = False
    """Whether there is a head that judges the order of two segments."""

    @model_validator(mode="after")
    def _padding_is_in_the_vocabulary(self) -> Self:
        if self.pad_token_id >= self.vocab_size:
            raise ValueError(
                f"pad_token_id = {self.pad_token_id} is outside the vocabulary of {self.vocab_size} entries; "
                "name the line of [PAD] in the vocabulary"
            )
        return self


def preset(name: str, vocab_size: int = BERT_CHINESE_VOCABULARY, **values: Any) -> NezhaConfig:
    """A preset with some values replaced: `preset("tiny", num_hidden_layers=2)`. ConfigError names a near preset."""
    return build(NezhaConfig, {"preset": name, "vocab_size": vocab_size, **values}, origin=f"preset {name!r}")
