"""What a recipe says about samples and masks."""

import math
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from nezha_ds.config import Settings
from nezha_ds.shards import Verify
from nezha_ds.shelf import LIMIT

SHORTEST, LONGEST = 16, 4096
LONGEST_GROUP = 10


class Ingredient(Settings):
    """One prepared text of a mixture."""

    shards: str
    """Folder that `nezha-ds prepare` wrote."""
    weight: int = 1
    """Its samples, beside the weights of the others: 3 and 1 make three samples of every four the first one's."""

    @field_validator("weight")
    @classmethod
    def _weighs_something(cls, weight: int) -> int:
        if weight < 1:
            raise ValueError(f"{weight} leaves nothing of this text; take 1 or more, or remove it from the mixture")
        return weight


class DataSettings(Settings):
    """Which prepared text to train on, and how it is cut into samples."""

    shards: str = ""
    """Folder that `nezha-ds prepare` wrote: shards, manifest.json and the vocabulary; or the URI of one,
    s3://bucket/folder or what else Arrow's file systems open. Unset where there is a mixture."""
    mixture: dict[str, Ingredient] = Field(default_factory=dict)
    """Several such folders in place of one, by names for the metrics, each with a weight in whole numbers:
    `[data.mixture]`, `news = {shards = "/data/news", weight = 3}`, `law = {shards = "/data/law", weight = 1}`. In order
    and masks the mixture is as exact as one folder; each text is gone through at its own pace, epoch after epoch. All
    have one tokenizer. Weights that a preparation gave to its sources count within its share."""
    cache: str = ""
    """Folder of each node for the shards of a URI, shared by its ranks, on a disk of its own; "" is nezha-ds-UID in
    the temporary folder (TMPDIR)."""
    cache_limit: float = LIMIT / 1e9
    """GB (10^9 bytes) of shards that the cache keeps; what was used longest ago goes first."""
    length: int = 128
    """Tokens in a sample, [CLS] and [SEP] included: 16 to 4096. 128 for most of training, 512 to finish."""
    format: Literal["full-sentences", "doc-sentences", "segment-pair", "sentence-pair"] = "full-sentences"
    """What a sample is made of, by RoBERTa's names: whole sentences in a row, across documents with a [SEP] between or
    within one document; or a pair for next-sentence prediction, of runs of sentences (as BERT's) or of single ones."""
    pairing: Literal["next-sentence", "sentence-order"] = "next-sentence"
    """What a pair asks: whether the second segment follows the first (BERT; half are of another document), or which of
    two that follow each other came first (ALBERT; half are swapped, anew in every epoch)."""
    short_rate: float = 0.0
    """Share of samples that aim at a random shorter length, from 2 tokens on, 0 to 1; BERT took 0.1."""
    verify: Verify = "hashes"
    """What is checked before a shard is first read: its hash (2 GB/s), its size only, or nothing."""
    prefetch: int = 4
    """Micro-batches made ahead by the loader's thread, at least 1."""

    @field_validator("mixture")
    @classmethod
    def _names_are_labels(cls, mixture: dict[str, Ingredient]) -> dict[str, Ingredient]:
        for name, part in mixture.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} is no name for a text; take letters, digits, - and _, as in news-2026")
            if not part.shards:
                raise ValueError(f"the folder of {name!r} has no name; give the one that `nezha-ds prepare` wrote")
        return mixture

    @model_validator(mode="after")
    def _reads_something(self) -> "DataSettings":
        if not self.shards and not self.mixture:
            raise ValueError("the folder has no name; give shards the one that `nezha-ds prepare --out` wrote")
        if self.shards and self.mixture:
            raise ValueError(
                f"shards {self.shards!r} and a mixture of {', '.join(self.mixture)} are both given; "
                "remove shards, or remove the mixture"
            )
        return self

    @model_validator(mode="after")
    def _pairs_to_order(self) -> "DataSettings":
        if self.pairing == "sentence-order" and not self.pairs:
            raise ValueError(
                f"pairing 'sentence-order' needs pairs, and format {self.format!r} cuts none; "
                "set data.format=segment-pair, or leave data.pairing out"
            )
        return self

    @field_validator("cache_limit")
    @classmethod
    def _limit_is_positive(cls, limit: float) -> float:
        if not 0 < limit < math.inf:
            raise ValueError(f"{limit} GB cannot hold a shard; take what the node's disk can spare")
        return limit

    @field_validator("length")
    @classmethod
    def _length_in_range(cls, length: int) -> int:
        if not SHORTEST <= length <= LONGEST:
            raise ValueError(f"{length} is not between {SHORTEST} and {LONGEST} tokens; take 128 or 512")
        return length

    @field_validator("short_rate")
    @classmethod
    def _short_rate_is_a_share(cls, rate: float) -> float:
        if not 0 <= rate <= 1:
            raise ValueError(f"{rate} is not a share from 0 to 1; BERT took 0.1, and 0 cuts no sample short")
        return rate

    @field_validator("prefetch")
    @classmethod
    def _prefetch_is_positive(cls, prefetch: int) -> int:
        if prefetch < 1:
            raise ValueError(f"{prefetch} micro-batches ahead is not possible; take 1 or more")
        return prefetch

    @property
    def parts(self) -> "dict[str, DataSettings]":
        """The settings of each folder by its name in the mixture; one that is alone has no name."""
        if self.shards:
            return {"": self}
        return {
            name: self.model_copy(update={"shards": part.shards, "mixture": {}}) for name, part in self.mixture.items()
        }

    @property
    def pairs(self) -> bool:
        """Whether samples are pairs of segments, and so have labels for what `pairing` asks."""
        return self.format in ("segment-pair", "sentence-pair")


class MaskingSettings(Settings):
    """Which tokens are predicted, and what the model sees in their places."""

    method: Literal["whole-word", "character", "n-gram", "span"] = "whole-word"
    """What is masked as a whole: the segmenter's words, single tokens as in the first BERT, groups of 1 to n words, or
    SpanBERT's spans of 1 to 10 words, which also tell the batch what stands beside each span."""
    rate: float = 0.15
    """Share of a sample's text tokens that are predicted, above 0 and below 1."""
    mask_share: float = 0.8
    """Share of the predicted tokens that become [MASK]."""
    random_share: float = 0.1
    """Share of the predicted tokens that become a random entry of the vocabulary; the rest stay as they are."""
    replace_by: Literal["token", "word", "span"] | None = None
    """What is replaced alike, by one draw: each token also inside a word, each word whole, or whatever the method
    masks as a whole. Unset: `span` for spans as in SpanBERT, else `token` as in BERT."""
    ngram_weights: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    """How likely groups of 1, 2, ... words are with method n-gram, 1 to 10 weights; unset: MacBERT's."""
    static_copies: int | None = None
    """Epochs after which masks repeat, as if so many copies were masked beforehand (BERT: 5 to 10). Unset: never."""
    max_predictions: int | None = None
    """Most predictions in a sample, and the width of the labels; unset: rate x length, rounded up (20 at 128)."""

    @field_validator("rate")
    @classmethod
    def _rate_is_a_share(cls, rate: float) -> float:
        if not 0 < rate < 1:
            raise ValueError(f"{rate} is not a share above 0 and below 1; BERT and NEZHA take 0.15")
        return rate

    @field_validator("ngram_weights")
    @classmethod
    def _weighs_something(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(weights) <= LONGEST_GROUP or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError(
                f"{list(weights)} are not 1 to {LONGEST_GROUP} weights from 0 on with one above 0; "
                "MacBERT takes [0.4, 0.3, 0.2, 0.1]"
            )
        return weights

    @field_validator("static_copies")
    @classmethod
    def _copies_something(cls, copies: int | None) -> int | None:
        if copies is not None and copies < 1:
            raise ValueError(
                f"{copies} copies are none; take 1 or more, or leave it unset for new masks in every epoch"
            )
        return copies

    @field_validator("max_predictions")
    @classmethod
    def _predicts_something(cls, most: int | None) -> int | None:
        if most is not None and most < 1:
            raise ValueError(f"{most} leaves nothing to predict; take 1 or more, or leave it unset")
        return most

    @model_validator(mode="after")
    def _shares_fit(self) -> "MaskingSettings":
        mask, random = self.mask_share, self.random_share
        if mask < 0 or random < 0 or mask + random > 1 + 1e-9:
            raise ValueError(
                f"mask_share {mask} and random_share {random} are not parts of one whole; BERT takes 0.8 and 0.1"
            )
        return self

    @property
    def replaced_together(self) -> Literal["token", "word", "span"]:
        """`replace_by`, or the method's own habit."""
        return self.replace_by or ("span" if self.method == "span" else "token")

    def masks_of(self, epochs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The epochs whose masks are used in `epochs`, in the same shape."""
        return epochs if self.static_copies is None else epochs % self.static_copies

    def predictions(self, length: int) -> int:
        """P, the places for predictions that a sample of `length` tokens has: 20 at 128 and 77 at 512 by default."""
        # Less 1e-9, as 0.07 x 100 is a hair above 7.
        most = math.ceil(self.rate * length - 1e-9) if self.max_predictions is None else self.max_predictions
        return min(most, length - 2)
