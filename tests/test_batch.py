"""A Batch moves whole and says how many samples it has."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from nezha_ds.batch import IGNORE, Batch


def make(**optional: torch.Tensor) -> Batch:
    return Batch(
        input_ids=torch.arange(12).view(3, 4),
        token_type_ids=torch.zeros(3, 4, dtype=torch.int64),
        lengths=torch.tensor([4, 3, 2]),
        mlm_positions=torch.zeros(3, 2, dtype=torch.int64),
        mlm_labels=torch.full((3, 2), IGNORE),
        sample_ids=torch.arange(3),
        **optional,
    )


@pytest.mark.parametrize("optional", [{}, {"next_sentence_labels": torch.ones(3, dtype=torch.int64)}])
def test_every_part_that_is_there_moves_and_what_is_absent_stays_absent(optional):
    batch = make(**optional)
    moved = batch.to("meta")
    for field in fields(Batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        assert (before is None) == (after is None)
        if after is not None:
            assert after.device.type == "meta"
            assert (after.shape, after.dtype) == (before.shape, before.dtype)


def test_samples_and_frozenness():
    batch = make()
    assert batch.samples == 3
    with pytest.raises(AttributeError):
        batch.lengths = torch.zeros(3)  # pyright: ignore


def test_ignored_labels_do_not_count_in_the_loss():
    labels = torch.tensor([1, IGNORE])
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(F.cross_entropy(logits, labels), F.cross_entropy(logits[:1], labels[:1]))
