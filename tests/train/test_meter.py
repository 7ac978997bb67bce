"""The meter's means are plain means over all predictions, however they are cut into micro-batches."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.model.heads import PreTrainingOutput
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.train.meter import LossMeter, prediction_shares
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World

B, P, V = 12, 5, 17
ALONE = Ranks(World())
BOTH = ObjectiveSettings(mlm=0.7, nsp=2.0)

seeds = st.integers(0, 10_000)
cuts = st.sets(st.integers(1, B - 1)).map(lambda inner: [0, *sorted(inner), B])


def sample(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and labels of B samples for both objectives; a sample has 0 to P predictions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, V, (B, P), generator=generator)
    labels[torch.arange(P) >= torch.randint(0, P + 1, (B, 1), generator=generator)] = IGNORE
    labels[0, 0] = 3  # one at least
    return (
        torch.randn(B, P, V, generator=generator),
        labels,
        torch.randn(B, 2, generator=generator),
        torch.randint(0, 2, (B,), generator=generator),
    )


def micro_batch(parts: tuple[torch.Tensor, ...], low: int, high: int) -> tuple[PreTrainingOutput, Batch]:
    scores, labels, pair_scores, pairs = (part[low:high] for part in parts)
    ids = torch.zeros(high - low, 1, dtype=torch.int64)
    batch = Batch(ids, ids, ids[:, 0], torch.zeros_like(labels), labels, ids[:, 0], next_sentence_labels=pairs)
    return PreTrainingOutput(scores, pair_scores), batch


@given(seed=seeds, edges=cuts)
def test_means_do_not_depend_on_the_cut(seed, edges):
    parts = sample(seed)
    scores, labels, pair_scores, pairs = parts
    meter = LossMeter(BOTH)
    for low, high in pairwise(edges):
        meter.add(pretraining_losses(*micro_batch(parts, low, high), BOTH))
    measured = meter.take(ALONE)
    mlm = F.cross_entropy(scores.flatten(0, 1), labels.flatten())
    nsp = F.cross_entropy(pair_scores, pairs)
    real = labels != IGNORE
    assert measured.losses == pytest.approx({"mlm": float(mlm), "nsp": float(nsp)}, rel=1e-5)
    assert measured.loss == pytest.approx(float(0.7 * mlm + 2 * nsp), rel=1e-5)
    right = {"mlm": (scores.argmax(-1) == labels)[real], "nsp": pair_scores.argmax(-1) == pairs}
    assert measured.accuracies == pytest.approx({name: float(hits.float().mean()) for name, hits in right.items()})
    assert measured.predictions == {"mlm": int(real.sum()), "nsp": B}


@given(seed=seeds, size=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_shares_make_the_mean_of_micro_batches_the_mean_of_all(seed, size):
    """And with them the gradient; without them a micro-batch of few predictions would weigh as much as one of many."""
    parts = sample(seed)
    micro_batches = [micro_batch(parts, low, low + size) for low in range(0, B, size)]
    shares = prediction_shares([batch for _, batch in micro_batches], BOTH, ALONE)
    pieces = [
        pretraining_losses(output, batch, BOTH, share).total
        for (output, batch), share in zip(micro_batches, shares, strict=True)
    ]
    whole = pretraining_losses(*micro_batch(parts, 0, B), BOTH).total
    assert float(torch.stack(pieces).mean()) == pytest.approx(float(whole), rel=1e-5)


def test_taking_starts_afresh():
    meter, parts = LossMeter(BOTH), sample(1)
    meter.add(pretraining_losses(*micro_batch(parts, 0, 6), BOTH))
    meter.take(ALONE)
    meter.add(pretraining_losses(*micro_batch(parts, 6, B), BOTH))
    second = meter.take(ALONE)
    assert second.predictions == {"mlm": int((parts[1][6:] != IGNORE).sum()), "nsp": B - 6}


def test_padding_of_an_evaluation_weighs_nothing():
    parts = sample(2)
    scores, labels, pair_scores, pairs = parts
    padding = (scores, torch.full_like(labels, IGNORE), pair_scores, torch.full_like(pairs, IGNORE))
    plain, padded = LossMeter(BOTH), LossMeter(BOTH)
    for meter in (plain, padded):
        meter.add(pretraining_losses(*micro_batch(parts, 0, B), BOTH))
    padded.add(pretraining_losses(*micro_batch(padding, 0, B), BOTH))
    assert padded.take(ALONE) == plain.take(ALONE)


def test_adding_does_not_wait_for_the_device(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "item", forbidden)
    monkeypatch.setattr(torch.Tensor, "tolist", forbidden)
    monkeypatch.setattr(torch.Tensor, "cpu", forbidden)
    meter = LossMeter(BOTH)
    meter.add(pretraining_losses(*micro_batch(sample(3), 0, B), BOTH))


def forbidden(*_):
    raise AssertionError("a wait for the device")
