"""Sample numbers to masked batches: order, slices, rows, masks. Pure, so any rank can make any batch at any time.

B samples, L length. About 45 ns a token on one core, in blocks of 131,072 places (1,024 samples at length 128), where
the arrays still lie in the cache and the calls no longer count.
"""

from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.data.collate import Flags, Rows, SpecialIds, gather
from nezha_ds.data.dataset import Samples, Seconds, Slices
from nezha_ds.data.masking import LONGEST_WORD, Masked, mask
from nezha_ds.data.randomness import U64, Purpose, draws, sample_keys, uniform
from nezha_ds.data.settings import MaskingSettings

BLOCK = 1 << 17
"""Places (B x L) that are made at once."""


@dataclass(frozen=True)
class Statistics:
    """What was made: a mask rate that is not the recipe's, or words of one length only, show a broken preparation."""

    tokens: int = 0
    """Text tokens, without special ones."""
    masked: int = 0
    """Tokens to predict."""
    word_lengths: tuple[int, ...] = (0,) * (LONGEST_WORD + 1)
    """How many words of each length from 0 were masked; the last count holds longer ones too."""
    sources: tuple[int, ...] = ()
    """Text tokens of each source."""

    @property
    def mask_rate(self) -> float:
        """The achieved share of text tokens that are predicted."""
        return self.masked / max(1, self.tokens)

    def __add__(self, other: "Statistics") -> "Statistics":
        lengths = tuple(a + b for a, b in zip(self.word_lengths, other.word_lengths, strict=True))
        sources = tuple(a + b for a, b in zip_longest(self.sources, other.sources, fillvalue=0))
        return Statistics(self.tokens + other.tokens, self.masked + other.masked, lengths, sources)


@dataclass(frozen=True)
class Counts:
    """What was made, for each of B samples."""

    tokens: NDArray[np.int64]
    """(B,): text tokens."""
    masked: NDArray[np.int64]
    """(B,): tokens to predict."""
    word_lengths: NDArray[np.int64]
    """(B, LONGEST_WORD + 1): masked words by length."""
    owners: NDArray[np.int64]
    """(B,): the source of each."""

    def sum(self, start: int, end: int) -> Statistics:
        """Of the samples start .. end - 1."""
        tokens, owners = self.tokens[start:end], self.owners[start:end]
        lengths: list[int] = self.word_lengths[start:end].sum(axis=0).tolist()
        sources: list[int] = np.bincount(owners, tokens).astype(np.int64).tolist()
        return Statistics(int(tokens.sum()), int(self.masked[start:end].sum()), tuple(lengths), tuple(sources))


@dataclass(frozen=True)
class Pipeline:
    """All that a masked sample depends on, besides its number in the plan and its epoch."""

    dataset: Samples
    masking: MaskingSettings
    length: int
    seed: int
    special: SpecialIds
    random_ids: NDArray[np.int64]
    ordered: bool = False
    """Whether the pairs ask for the order of their segments, half of which are swapped."""

    def slices(self, samples: NDArray[np.int64], epochs: NDArray[np.int64]) -> Slices:
        """Where the samples (B,) lie, as each is in its epoch."""
        slices = self.dataset.slices(samples)
        return swapped(slices, self._keys(samples, epochs)) if self.ordered else slices

    def make(self, samples: NDArray[np.int64], epochs: NDArray[np.int64]) -> tuple[Batch, Counts]:
        """One batch of the samples (B,) of the plan, as each is masked in its epoch. DataError for a damaged shard."""
        slices = self.slices(samples, epochs)
        rows = gather(self.dataset.columns, slices, self.length, self.special)
        keys, places = self._keys(samples, epochs), self.masking.predictions(self.length)
        masked = mask(rows, keys, self.masking, places, self.special.mask, self.random_ids)
        counts = Counts(
            tokens=np.count_nonzero(rows.text, axis=1),
            masked=np.count_nonzero(masked.labels != IGNORE, axis=1),
            word_lengths=masked.word_lengths,
            owners=self.dataset.owners[slices.shards],
        )
        labels = None if slices.seconds is None else _tensor(slices.seconds.labels)
        batch = _to_batch(rows, masked, samples)
        return replace(batch, **{"sentence_order_labels" if self.ordered else "next_sentence_labels": labels}), counts

    def block(self, micro_batch: int) -> int:
        """How many micro-batches to make at once."""
        return max(1, BLOCK // (micro_batch * self.length))

    def _keys(self, samples: NDArray[np.int64], epochs: NDArray[np.int64]) -> U64:
        return sample_keys(self.seed, self.masking.masks_of(epochs), samples)


def swapped(slices: Slices, keys: U64) -> Slices:
    """The pairs with the two segments of about half of them swapped, by their keys (B,); label 1 tells which."""
    seconds = slices.seconds
    assert seconds is not None
    coins = uniform(draws(keys, np.zeros(1, np.uint64), Purpose.SWAP)) < 0.5
    swap = coins & (seconds.labels != IGNORE)
    return Slices(
        slices.shards,
        np.where(swap, seconds.starts, slices.starts),
        np.where(swap, seconds.ends, slices.ends),
        Seconds(
            np.where(swap, slices.starts, seconds.starts),
            np.where(swap, slices.ends, seconds.ends),
            np.where(swap, 1, seconds.labels),
        ),
    )


def _to_batch(rows: Rows, masked: Masked, samples: NDArray[np.int64]) -> Batch:
    return Batch(
        input_ids=_tensor(masked.ids),
        token_type_ids=_tensor(_token_types(rows)),
        lengths=_tensor(rows.lengths),
        mlm_positions=_tensor(masked.positions),
        mlm_labels=_tensor(masked.labels),
        sample_ids=_tensor(samples),
        span_boundaries=None if masked.boundaries is None else _tensor(masked.boundaries),
    )


def _token_types(rows: Rows) -> NDArray[np.int64]:
    """(B, L): 1 from the second segment to its [SEP]."""
    if rows.seconds is None:
        return np.zeros(rows.ids.shape, np.int64)
    column = np.arange(rows.ids.shape[1], dtype=np.int64)
    second: Flags = (column >= rows.seconds[:, None]) & (column < rows.lengths[:, None])
    return second.astype(np.int64)


def _tensor(array: NDArray[np.int64]) -> Tensor:
    """The array's memory as a tensor."""
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType] - torch leaves the parameter bare
