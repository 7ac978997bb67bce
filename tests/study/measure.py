"""What a trained model recovers of held-out text. B samples, L length, P predictions, n predictions of a whole batch.

Recovery is stricter than accuracy: a word, or a run of masked tokens, counts when every piece of it is right. The masks
of a view come from one seed for all models, so that two models are asked the same.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.data.collate import Flags, gather, replacement_ids, special_ids
from nezha_ds.data.mixture import open_mixture
from nezha_ds.data.pipeline import Pipeline
from nezha_ds.text.vocab import Vocabulary
from nezha_ds.train.recipe import Recipe
from tests.study.arms import View

SEED = 0
"""Of the masks."""
PLACES = 1 << 11
"""Tokens of a batch, as in training."""
SIZES = (1, 2, 3, 5, 9)
"""Where the classes of unit sizes begin: 1, 2, 3 to 4, 5 to 8, 9 and more tokens."""

Numbers = NDArray[np.int64]


@dataclass
class Score:
    """What one head of a model made of a view."""

    loss: float = 0.0
    """Nats a prediction."""
    accuracy: float = 0.0
    """Share of predictions that are right."""
    predictions: int = 0
    recovered: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """Of each class of sizes, by its first: units recovered, and all units."""

    def share(self, least: int = 1) -> float:
        """Recovered units among those of `least` tokens and more."""
        counted = [counts for size, counts in self.recovered.items() if size >= least]
        return sum(right for right, _ in counted) / sum(total for _, total in counted)


class Tally:
    """Predictions of one head, added up batch by batch."""

    def __init__(self) -> None:
        self._loss, self._right, self._count = 0.0, 0, 0
        self._recovered = np.zeros((len(SIZES), 2), np.int64)

    def add(self, logits: Tensor, labels: Tensor, units: Numbers | None) -> None:
        """Scores (n, V), labels (n,) and the number of the unit that each prediction lies in (n,)."""
        self._loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right = (logits.argmax(dim=-1) == labels).numpy()
        self._right += int(right.sum())
        self._count += len(labels)
        if units is not None:
            self._recovered += classes(*recovery(units, right))

    def score(self) -> Score:
        """What it came to."""
        recovered = {size: counts for size, counts in zip(SIZES, self._recovered.tolist(), strict=True) if counts[1]}
        return Score(self._loss / self._count, self._right / self._count, self._count, recovered)


def recovery(units: Numbers, right: NDArray[np.bool_]) -> tuple[Numbers, NDArray[np.bool_]]:
    """Of each unit (u,), by ascending number: its predictions, and whether all of them are right. (n,), (n,)."""
    _, which, sizes = np.unique(units, return_inverse=True, return_counts=True)
    return sizes, np.bincount(which, weights=right, minlength=len(sizes)) == sizes


def classes(sizes: Numbers, whole: NDArray[np.bool_]) -> Numbers:
    """(classes of SIZES, 2): units recovered, and all units, from sizes (u,) and whether each is recovered (u,)."""
    which = np.searchsorted(SIZES, sizes, side="right") - 1
    return np.stack([np.bincount(which[whole], minlength=len(SIZES)), np.bincount(which, minlength=len(SIZES))], axis=1)


def word_numbers(words: Flags, positions: Numbers) -> Numbers:
    """(B, P): which word of the batch each position (B, P) lies in, from where words begin (B, L)."""
    numbers = np.cumsum(words.reshape(-1)).reshape(words.shape)
    return np.take_along_axis(numbers, positions, axis=1)


def run_numbers(boundaries: Numbers, length: int) -> Numbers:
    """(B, P): a number of the run of masked tokens that each prediction lies in, from its two neighbours (B, P, 2)."""
    return boundaries[..., 0] + length * np.arange(len(boundaries))[:, None]


@torch.no_grad()
def look(model: nn.Module, recipe: Recipe, vocabulary: Vocabulary, view: View) -> dict[str, Score]:
    """What the heads of a trained model (`mlm`, and `span` where it has one) make of a view of the held-out text."""
    tallies: dict[str, Tally] = {}
    model.eval()
    for batch, words in _batches(recipe, vocabulary, view):
        output, real = model(batch), batch.mlm_labels != IGNORE
        units = _units(batch, words, view)
        numbers = None if units is None else units[real.numpy()]
        heads = {"mlm": output.mlm_logits, "span": getattr(output, "span_logits", None)}
        for name, logits in heads.items():
            if logits is not None:
                tallies.setdefault(name, Tally()).add(logits[real].float(), batch.mlm_labels[real], numbers)
    model.train()
    return {name: tally.score() for name, tally in tallies.items()}


def _batches(recipe: Recipe, vocabulary: Vocabulary, view: View) -> Iterator[tuple[Batch, Flags]]:
    """All held-out samples once, masked, and where their words begin (B, L)."""
    data = recipe.data.model_copy(update={"length": view.length})
    masking = recipe.masking.model_copy(update=view.masking)
    special = special_ids(vocabulary)
    with closing(open_mixture(data, "heldout")) as mixture:
        pipeline = Pipeline(mixture, masking, view.length, SEED, special, replacement_ids(vocabulary))
        every = np.arange(len(mixture))
        for samples in np.split(every, range(PLACES // view.length, len(every), PLACES // view.length)):
            batch, _ = pipeline.make(samples, np.zeros_like(samples))
            # Which the batch does not tell: a model must not know them.
            yield batch, gather(mixture.columns, mixture.slices(samples), view.length, special).words


def _units(batch: Batch, words: Flags, view: View) -> Numbers | None:
    """(B, P): the number of the unit that each prediction lies in."""
    if view.units == "words":
        return word_numbers(words, batch.mlm_positions.numpy())
    if view.units == "runs":
        assert batch.span_boundaries is not None
        return run_numbers(batch.span_boundaries.numpy(), view.length)
    return None
