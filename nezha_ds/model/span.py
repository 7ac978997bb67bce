"""Span prediction: what a masked span held, told from the two tokens beside it. P predictions, D hidden, V vocabulary.

    x_t = [h_left ; h_right ; place_t],   s_t = (LayerNorm ∘ GELU ∘ Linear) twice of x_t,   scores = s_t · words + bias

`h_left` and `h_right` are the top-layer states of the tokens beside the span, so that the loss teaches these to hold
what stands between them; the state at t itself is not looked at. `place_t` tells which token of the span is asked for:

    nezha      [a(t - left) ; a(t - right)], the encoder's own functional relative encodings, 2 H numbers, not learned
    spanbert   a learned embedding of t - left - 1, 200 numbers, 20 of them (arXiv 1907.10529 and its code)

NEZHA's report names the two states and the relative position encodings of the target to each; no code was ever
published. All else is taken from SpanBERT here, so both forms share everything but the place, and a comparison of the
two measures that alone. The encodings are H wide and the states D. They are concatenated, which lets the first Linear
project them: repeated over the heads, N times the weights would give the same functions. They come from the functional
table whatever positions the encoder has, clipped at K as there.

The decoder's matrix is the word embeddings, its bias the head's own. It runs on P places, as the masked-language head's
does. With both, a step holds two (B, P, V) tensors of scores and their log-probabilities in fp32 for backward: at
length 128 and V = 21,128, 1.7 MB a sample for each fp32 tensor, 6.5 MB at 512. At base width the head adds 1.9M
parameters (`nezha`) or 2.0M (`spanbert`), and a ninth of the decoder's own time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.nezha import activation
from nezha_ds.model.relative import relative_table

OFFSETS = 20
"""Places in a span that SpanBERT's form tells apart; those beyond look like the last one."""
OFFSET_SIZE = 200
"""Numbers that SpanBERT's code has for each of them."""


class SpanHead(nn.Module):
    """From the states beside spans to scores of the vocabulary for each token inside."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        assert config.span_form is not None
        self.place = PLACES[config.span_form](config)
        width = config.hidden_size
        self.layers = nn.ModuleList([Layer(2 * width + self.place.size, config), Layer(width, config)])
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, positions: Tensor, boundaries: Tensor, words: Tensor) -> Tensor:
        """(B, L, D), (B, P), (B, P, 2), (V, D) -> (B, P, V)."""
        # (B, P, 2) -> (B, 2 P, D): left and right by turns, so that (B, P, 2 D) is both end to end.
        index = boundaries.flatten(1)[..., None].expand(-1, -1, hidden.shape[2])
        beside = hidden.gather(1, index).view(*positions.shape, -1)
        states = torch.cat((beside, self.place(positions, boundaries).to(hidden.dtype)), dim=-1)
        for layer in self.layers:
            states = layer(states)
        return F.linear(states, words, self.bias)


class Layer(nn.Module):
    """Linear, GELU, LayerNorm."""

    def __init__(self, width: int, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.activation = activation(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, D)."""
        return self.norm(self.activation(self.dense(x)))


class RelativePlace(nn.Module):
    """NEZHA's: the functional relative encodings of a place to both boundaries."""

    table: Tensor

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.clip, self.size = config.max_relative_position, 2 * config.head_size
        self.register_buffer("table", relative_table(self.clip, config.head_size), persistent=False)

    def forward(self, positions: Tensor, boundaries: Tensor) -> Tensor:
        """(B, P), (B, P, 2) -> (B, P, 2 H)."""
        # As in attention, the row of key j for query i is j - i: here the target is seen from the boundary.
        distances = positions[..., None] - boundaries
        return self.table[distances.clamp(-self.clip, self.clip) + self.clip].flatten(2)


class OffsetPlace(nn.Module):
    """SpanBERT's: a learned embedding of the place in the span, counted from its left boundary."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.size = OFFSET_SIZE
        self.offsets = nn.Embedding(OFFSETS, OFFSET_SIZE)

    def forward(self, positions: Tensor, boundaries: Tensor) -> Tensor:
        """(B, P), (B, P, 2) -> (B, P, 200)."""
        # Places without a prediction, where all is 0, would be at -1.
        return self.offsets((positions - boundaries[..., 0] - 1).clamp(0, OFFSETS - 1))


PLACES = {"nezha": RelativePlace, "spanbert": OffsetPlace}
"""By the name in `NezhaConfig.span_form`."""
