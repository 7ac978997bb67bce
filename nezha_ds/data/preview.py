"""What training would see of a prepared folder, for whoever wants to look: real batches, counted, and some rows.

Samples and masks come from the functions that feed a run. Of a folder with up to 8 shards for training they are the
very ones of its first epoch; of a larger one, 8 shards spread over it are cut as if they were all there is. A million
places are counted, which settles the rate to 0.05 points: 0.1 s, and 0.3 s for each shard of 64 MB.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.data.collate import gather, replacement_ids, special_ids
from nezha_ds.data.dataset import Dataset, shelf_of
from nezha_ds.data.pipeline import Pipeline, Statistics
from nezha_ds.data.plan import build_plan
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.shards import Manifest, read_manifest
from nezha_ds.text.vocab import Vocabulary

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]

SHARDS = 8
"""Shards that are looked into, at most."""
PLACES = 1 << 20
"""Places (B x L) that are counted, at most."""
SHOWN_TOKENS = 256
"""Tokens of a sample that are shown, at most."""
LABELS = ("next", "random", "in order", "swapped", "none")
"""What the second segment of a pair may be."""


@dataclass(frozen=True)
class Row:
    """The first n tokens of one sample, without [CLS] and the last [SEP]."""

    number: int
    """The sample's number in its plan."""
    ids: Ids
    """(n,): what stands in the text."""
    seen: Ids
    """(n,): what the model sees."""
    word_starts: Flags
    """(n,): where a word begins; a [SEP] is one by itself."""
    text: Flags
    """(n,): what is text, and not a [SEP]."""
    predicted: Flags
    """(n,)"""
    label: str = ""
    """What the second segment of a pair is: `next` or `random`, `in order` or `swapped`, `none`; nothing if no pair."""


@dataclass(frozen=True)
class Preview:
    """What masking does to a folder's samples in epoch 0."""

    settings: DataSettings
    masking: MaskingSettings
    seed: int
    whole: bool
    """Whether these are training's own samples, and not only like them."""
    samples: int
    """How many were counted."""
    counted: Statistics
    outcomes: tuple[int, int, int]
    """Predicted tokens that became [MASK], became a random entry, stayed as they were."""
    fill: Ids
    """(10,): samples by the tenth of their places that holds tokens."""
    mean_fill: float
    """The share of all places that holds tokens."""
    rows: tuple[Row, ...]
    pairs: Mapping[str, int] = field(default_factory=dict[str, int])
    """Counted pairs by what their second segment is; empty where samples are no pairs."""

    @property
    def length(self) -> int:
        """Places of a sample, L."""
        return self.settings.length

    @property
    def format(self) -> str:
        """What a sample is made of."""
        return self.settings.format

    @property
    def method(self) -> str:
        """What is masked as a whole."""
        return self.masking.method

    @property
    def asked_rate(self) -> float:
        """The share of text tokens to predict."""
        return self.masking.rate

    @property
    def achieved_rate(self) -> float:
        """The share of text tokens that are predicted."""
        return self.counted.mask_rate

    @property
    def asked_outcomes(self) -> tuple[float, float, float]:
        """Shares of the predicted tokens, in the order of `outcomes`."""
        mask, random = self.masking.mask_share, self.masking.random_share
        return mask, random, max(0.0, 1 - mask - random)

    @property
    def word_lengths(self) -> tuple[int, ...]:
        """(LONGEST_WORD + 1,): masked words (of method `character`: tokens) by length; the last holds longer ones."""
        return self.counted.word_lengths


def preview(settings: DataSettings, masking: MaskingSettings, seed: int, vocabulary: Vocabulary, rows: int) -> Preview:
    """Make samples of a folder's training split, count them, and return `rows` of them, spread evenly.

    DataError when the folder or a shard is damaged, or no sample of this format can be cut.
    """
    shelf = shelf_of(settings)
    manifest = read_manifest(shelf.folder)
    some = _some_shards(manifest)
    plan = build_plan(shelf, some, "train", settings)
    pipeline = Pipeline(
        Dataset(some, "train", settings, plan, shelf),
        masking,
        settings.length,
        seed,
        special_ids(vocabulary),
        replacement_ids(vocabulary),
        settings.pairing == "sentence-order",
    )
    numbers = _spread(len(plan), PLACES // settings.length)
    counted, outcomes, lengths = Statistics(), np.zeros(3, np.int64), list[Ids]()
    pairs: Counter[str] = Counter()
    for first in range(0, len(numbers), pipeline.block(1)):
        block = numbers[first : first + pipeline.block(1)]
        batch, counts = pipeline.make(block, np.zeros_like(block))
        counted += counts.sum(0, len(block))
        outcomes += _outcomes(batch, pipeline.special.mask)
        lengths.append(batch.lengths.numpy())
        pairs.update(_labels(batch))
    filled = np.concatenate(lengths)
    return Preview(
        settings=settings,
        masking=masking,
        seed=seed,
        whole=len(some.shards) == len(manifest.of("train")),
        samples=len(numbers),
        counted=counted,
        outcomes=(int(outcomes[0]), int(outcomes[1]), int(outcomes[2])),
        fill=np.bincount(np.minimum(filled * 10 // settings.length, 9), minlength=10),
        mean_fill=float(filled.mean() / settings.length),
        rows=tuple(_rows(pipeline, _spread(len(plan), rows))) if rows else (),
        pairs={label: pairs[label] for label in LABELS if label in pairs},
    )


def _some_shards(manifest: Manifest) -> Manifest:
    """The manifest with up to SHARDS of its shards for training, spread evenly."""
    entries = manifest.of("train")
    places: list[int] = _spread(len(entries), SHARDS).tolist()
    return manifest.model_copy(update={"shards": tuple(entries[place] for place in places)})


def _spread(total: int, most: int) -> Ids:
    """Up to `most` of the numbers below `total`, at equal distances."""
    count = min(total, most)
    return np.arange(count, dtype=np.int64) * total // count


def _outcomes(batch: Batch, mask_id: int) -> Ids:
    """(3,): tokens masked, replaced at random, kept."""
    positions, labels = batch.mlm_positions.numpy(), batch.mlm_labels.numpy()
    seen = np.take_along_axis(batch.input_ids.numpy(), positions, axis=1)
    predicted = labels != IGNORE
    masked = np.count_nonzero(predicted & (seen == mask_id))
    kept = np.count_nonzero(predicted & (seen == labels))
    return np.array([masked, np.count_nonzero(predicted) - masked - kept, kept])


def _labels(batch: Batch) -> list[str]:
    """(B,): what the second segment of each pair is, or nothing where samples are no pairs."""
    for numbers, names in (
        (batch.next_sentence_labels, {0: "next", 1: "random", IGNORE: "none"}),
        (batch.sentence_order_labels, {0: "in order", 1: "swapped", IGNORE: "none"}),
    ):
        if numbers is not None:
            return [names[number] for number in numbers.numpy().tolist()]
    return []


def _rows(pipeline: Pipeline, numbers: Ids) -> Iterator[Row]:
    epochs = np.zeros_like(numbers)
    batch, _ = pipeline.make(numbers, epochs)
    labels = _labels(batch) or [""] * len(numbers)
    plain = gather(pipeline.dataset.columns, pipeline.slices(numbers, epochs), pipeline.length, pipeline.special)
    predicted = np.zeros(plain.text.shape, np.bool_)
    wanted = batch.mlm_labels.numpy() != IGNORE
    predicted[np.nonzero(wanted)[0], batch.mlm_positions.numpy()[wanted]] = True
    for row, number in enumerate(numbers.tolist()):
        shown = slice(1, min(int(plain.lengths[row]) - 1, SHOWN_TOKENS + 1))
        yield Row(
            number=number,
            ids=plain.ids[row, shown].astype(np.int64),
            seen=batch.input_ids.numpy()[row, shown],
            word_starts=(plain.words | ~plain.text)[row, shown],
            text=plain.text[row, shown],
            predicted=predicted[row, shown],
            label=labels[row],
        )
