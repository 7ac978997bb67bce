"""What masking would do to one piece of text, for whoever wants to look at it."""

import numpy as np
from numpy.typing import NDArray

from nezha_ds.data.collate import Rows
from nezha_ds.data.masking import mask
from nezha_ds.data.randomness import sample_keys
from nezha_ds.data.settings import MaskingSettings


def masked_positions(
    ids: NDArray[np.int64], word_starts: NDArray[np.bool_], sample: int, masking: MaskingSettings, seed: int
) -> frozenset[int]:
    """The positions in (L,) ids that would be predicted in epoch 0 if this were sample number `sample`."""
    # One row with a place for [CLS] before and [SEP] behind; what the ids are does not matter to the choice.
    text = np.pad(np.ones((1, len(ids)), np.bool_), ((0, 0), (1, 1)))
    words = np.pad(word_starts[None], ((0, 0), (1, 1)))
    rows = Rows(np.zeros(text.shape, np.int32), text, words, np.array([len(ids) + 2]))
    numbers = np.array([sample])
    places = masking.predictions(len(ids) + 2)
    # Ids become 1 and labels 0, so that the places without a label show as IGNORE.
    masked = mask(rows, sample_keys(seed, np.zeros_like(numbers), numbers), masking, places, 1, np.array([1]))
    return frozenset((masked.positions[masked.labels >= 0] - 1).tolist())
