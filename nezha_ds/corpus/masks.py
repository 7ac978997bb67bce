"""What inspection shows of samples and masks, by shape: the data room makes them, this room draws them.

The two rooms do not import each other; the command line hands what one returns to the other.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

OUTCOMES = ("masked", "random", "kept")
"""What becomes of a token that is to be predicted: [MASK], a random entry of the vocabulary, nothing."""


def shares(pairs: Mapping[str, int]) -> str:
    """Pairs by label for people: `50.3% in order, 49.7% swapped`."""
    whole = sum(pairs.values())
    return ", ".join(f"{count / whole:.1%} {label}" for label, count in pairs.items())


class Row(Protocol):
    """The first n tokens of one sample."""

    @property
    def number(self) -> int:
        """The sample's number."""
        ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """(n,): what stands in the text."""
        ...

    @property
    def seen(self) -> NDArray[np.int64]:
        """(n,): what the model sees."""
        ...

    @property
    def word_starts(self) -> NDArray[np.bool_]:
        """(n,): where a word begins."""
        ...

    @property
    def text(self) -> NDArray[np.bool_]:
        """(n,): what is text, and not a [SEP]."""
        ...

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """(n,): what the model has to predict."""
        ...

    @property
    def label(self) -> str:
        """What the second segment of a pair is; nothing where samples are no pairs."""
        ...


class Masks(Protocol):
    """What masking does to a folder's samples."""

    @property
    def method(self) -> str:
        """What is masked as a whole: `whole-word` and its like."""
        ...

    @property
    def format(self) -> str:
        """What a sample is made of: `full-sentences` and its like."""
        ...

    @property
    def length(self) -> int:
        """Places of a sample."""
        ...

    @property
    def seed(self) -> int:
        """Another seed, other masks."""
        ...

    @property
    def whole(self) -> bool:
        """Whether these are training's own samples, and not only like them."""
        ...

    @property
    def samples(self) -> int:
        """How many were counted."""
        ...

    @property
    def asked_rate(self) -> float:
        """The share of text tokens to predict."""
        ...

    @property
    def achieved_rate(self) -> float:
        """The share of text tokens that are predicted."""
        ...

    @property
    def asked_outcomes(self) -> tuple[float, float, float]:
        """The shares of the predicted tokens that each of OUTCOMES was to have."""
        ...

    @property
    def outcomes(self) -> tuple[int, int, int]:
        """Predicted tokens of each of OUTCOMES."""
        ...

    @property
    def word_lengths(self) -> tuple[int, ...]:
        """Masked words by length, from 0 on; the last count holds longer ones too."""
        ...

    @property
    def fill(self) -> NDArray[np.int64]:
        """(10,): samples by the tenth of their places that holds tokens."""
        ...

    @property
    def mean_fill(self) -> float:
        """The share of all places that holds tokens."""
        ...

    @property
    def pairs(self) -> Mapping[str, int]:
        """Samples counted by their label; empty where they are no pairs."""
        ...

    @property
    def rows(self) -> Sequence[Row]:
        """The samples to show."""
        ...
