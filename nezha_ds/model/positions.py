"""Where the model knows the order of tokens from: five ways, which are the answers to two questions.

                 rows (R, H) for the attention                         rows (Lmax, D) added to the embeddings
    computed     functional-relative, functional-relative-unclipped    functional-absolute
    learned      learned-relative                                      learned-absolute

`functional-relative` is NEZHA as it was released (relative.py). Unclipped is the equation that its paper prints: the
row of a distance j - i is sin((j - i) · w), without a shift, and every distance below Lmax = max_position_embeddings
has one of its own. `learned-relative` is Shaw et al. (arXiv 1803.02155) with one table for keys, values, heads and
layers, as NEZHA shares its own; `learned-absolute` is BERT. Computed rows are buffers that no file holds, learned ones
are weights.

The table for the attention is at most 129 x 64 numbers where it is clipped, 1023 x 64 (256 KiB) for 512 tokens where
it is not. R rows, H head size, D hidden, Lmax longest sequence.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nezha_ds.errors import DataError
from nezha_ds.model.relative import relative_table, sinusoids

PositionKind = Literal[
    "functional-relative",
    "functional-relative-unclipped",
    "learned-relative",
    "learned-absolute",
    "functional-absolute",
]


class Sizes(Protocol):
    """What decides the rows: our configuration, and that of `nezha_ds.hf`."""

    positions: PositionKind
    hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int
    max_relative_position: int
    initializer_range: float


class Kind(NamedTuple):
    """One of the five."""

    rows: Callable[[Sizes], Tensor]
    """The rows; room for them where they are learned."""
    relative: bool = False
    """Rows for the attention, from the most negative distance to the largest; otherwise added to the embeddings."""
    learned: bool = False
    bounded: bool = True
    """Whether there is nothing to tell tokens by beyond max_position_embeddings."""


def _clipped(sizes: Sizes) -> Tensor:
    return relative_table(sizes.max_relative_position, _head_size(sizes))


def _unclipped(sizes: Sizes) -> Tensor:
    distances = torch.arange(1 - sizes.max_position_embeddings, sizes.max_position_embeddings)
    return sinusoids(distances.double(), _head_size(sizes)).float()


def _clipped_room(sizes: Sizes) -> Tensor:
    return torch.empty(2 * sizes.max_relative_position + 1, _head_size(sizes))


def _absolute(sizes: Sizes) -> Tensor:
    # As large as fresh embeddings: plain sinusoids would be 35 times as large as words of deviation 0.02 and drown them
    # in the LayerNorm that follows. The Transformer scales its words up instead (arXiv 1706.03762, 3.4).
    positions = torch.arange(sizes.max_position_embeddings).double()
    return (sinusoids(positions, sizes.hidden_size) * (2**0.5 * sizes.initializer_range)).float()


def _absolute_room(sizes: Sizes) -> Tensor:
    return torch.empty(sizes.max_position_embeddings, sizes.hidden_size)


def _head_size(sizes: Sizes) -> int:
    return sizes.hidden_size // sizes.num_attention_heads


KINDS: dict[PositionKind, Kind] = {
    "functional-relative": Kind(_clipped, relative=True, bounded=False),
    "functional-relative-unclipped": Kind(_unclipped, relative=True),
    "learned-relative": Kind(_clipped_room, relative=True, learned=True, bounded=False),
    "learned-absolute": Kind(_absolute_room, learned=True),
    "functional-absolute": Kind(_absolute),
}
"""By the name in `NezhaConfig.positions`."""


class Positions(nn.Module):
    """The rows of a kind, computed or learned, as `weight`."""

    weight: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        kind = KINDS[sizes.positions]
        self.is_learned = kind.learned
        rows = kind.rows(sizes)
        if kind.learned:
            self.weight = nn.Parameter(rows)
        else:
            # A buffer, so that it moves with the weights; not persistent, since it is not learned.
            self.register_buffer("weight", rows, persistent=False)


def check_length(sizes: Sizes, length: int) -> None:
    """DataError for a sequence that is longer than its positions reach."""
    if KINDS[sizes.positions].bounded and length > sizes.max_position_embeddings:
        raise DataError(
            f"the sequence has {length} tokens, and positions = {sizes.positions!r} tell "
            f"{sizes.max_position_embeddings} apart (max_position_embeddings); shorten it"
        )
