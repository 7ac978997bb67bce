"""The samples of the prepared shards, not masked, and what else our side needs to make batches of them."""

from pathlib import Path
from typing import Any

import numpy as np

from nezha_ds.data.collate import Rows, SpecialIds, gather
from nezha_ds.data.dataset import Dataset, open_dataset
from nezha_ds.data.settings import DataSettings
from nezha_ds.text.vocab import load_vocabulary

VOCABULARY = load_vocabulary(None)
SPECIAL = SpecialIds(
    pad=VOCABULARY.pad_id,
    unk=VOCABULARY.unk_id,
    cls=VOCABULARY.cls_id,
    sep=VOCABULARY.sep_id,
    mask=VOCABULARY.mask_id,
)
RANDOM_IDS = np.arange(SPECIAL.mask + 1, len(VOCABULARY))


def settings(folder: Path, length: int, **rest: Any) -> DataSettings:
    """Of the shards that `material.shards` made."""
    return DataSettings(shards=str(folder / "shards"), length=length, **rest)


def dataset_of(folder: Path, length: int) -> Dataset:
    """The samples, mapped."""
    return open_dataset(settings(folder, length), "train")[0]


def rows_of(folder: Path, length: int, count: int | None = None) -> Rows:
    """All samples as rows, in the plan's order, or the first `count`."""
    dataset = dataset_of(folder, length)
    samples = np.arange(len(dataset.plan))[:count]
    return gather(dataset.columns, dataset.slices(samples), length, SPECIAL)
