import math
from dataclasses import replace

import pytest
import torch

from nezha_ds.batch import IGNORE
from nezha_ds.errors import ConfigError
from nezha_ds.model.heads import PreTrainingOutput
from nezha_ds.objectives import ObjectiveSettings, count_predictions, pretraining_losses
from tests.model.samples import random_batch, small_config


@pytest.fixture
def batch():
    return random_batch([12, 9, 5], predictions=4)


@pytest.fixture
def output(batch):
    generator = torch.Generator().manual_seed(0)
    return PreTrainingOutput(torch.randn(3, 4, 71, generator=generator), torch.randn(3, 2, generator=generator))


def test_the_loss_is_the_mean_negative_log_probability_of_the_labels(batch, output):
    losses = pretraining_losses(output, batch, ObjectiveSettings())
    chances = output.mlm_logits.double().softmax(-1)
    labelled = [(b, p) for b in range(3) for p in range(4) if batch.mlm_labels[b, p] != IGNORE]
    expected = -sum(math.log(chances[b, p, batch.mlm_labels[b, p]].item()) for b, p in labelled) / len(labelled)
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)
    assert losses.counts["mlm"].item() == len(labelled) == 10
    assert losses.parts.keys() == {"mlm"}


def test_the_total_weighs_the_parts(batch, output):
    losses = pretraining_losses(output, batch, ObjectiveSettings(mlm=0.5, nsp=2.0))
    expected = 0.5 * losses.parts["mlm"] + 2.0 * losses.parts["nsp"]
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses.counts["nsp"].item() == 3


def test_accuracy_counts_labelled_places_only(batch, output):
    logits = torch.zeros_like(output.mlm_logits)
    logits[..., 0] = 1.0
    first_label = batch.mlm_labels[0, 0]
    logits[0, 0, first_label] = 2.0
    losses = pretraining_losses(PreTrainingOutput(logits, None), batch, ObjectiveSettings())
    assert losses.hits["mlm"].item() == 1
    assert losses.accuracy["mlm"].item() == pytest.approx(0.1)


def test_half_precision_scores_are_summed_in_fp32(batch, output):
    halves = PreTrainingOutput(output.mlm_logits.bfloat16(), None)
    exact = pretraining_losses(PreTrainingOutput(halves.mlm_logits.double(), None), batch, ObjectiveSettings())
    losses = pretraining_losses(halves, batch, ObjectiveSettings())
    assert losses.total.dtype == torch.float32
    assert losses.total.item() == pytest.approx(exact.total.item(), rel=1e-6)


def test_a_batch_without_predictions_costs_nothing(batch, output):
    batch.mlm_labels.fill_(IGNORE)
    logits = output.mlm_logits.requires_grad_()
    losses = pretraining_losses(PreTrainingOutput(logits, None), batch, ObjectiveSettings())
    losses.total.backward()
    assert losses.total.item() == 0
    assert losses.accuracy["mlm"].item() == 0
    assert logits.grad.count_nonzero() == 0


def test_parts_keep_no_graph(batch, output):
    output.mlm_logits.requires_grad_()
    losses = pretraining_losses(output, batch, ObjectiveSettings())
    assert losses.total.requires_grad
    assert not any(tensor.requires_grad for tensor in [*losses.parts.values(), *losses.accuracy.values()])


def test_next_sentences_need_pairs(output):
    batch = random_batch([12, 9, 5], predictions=4, pairs=False)
    with pytest.raises(ConfigError, match=r"not pairs; set objective\.nsp=0, or cut"):
        pretraining_losses(PreTrainingOutput(output.mlm_logits, None), batch, ObjectiveSettings(nsp=1.0))


def test_spans_are_predicted_where_masked_words_are_and_need_to_know_what_is_beside_them(batch, output):
    everything = ObjectiveSettings(mlm=1.0, span=0.5)
    with pytest.raises(ConfigError, match=r"set masking\.method=span or objective\.span=0"):
        pretraining_losses(output, batch, everything)
    batch = replace(batch, span_boundaries=torch.zeros(3, 4, 2, dtype=torch.int64))
    # The same scores for both: the same loss, counted over the same places.
    losses = pretraining_losses(output._replace(span_logits=output.mlm_logits), batch, everything)
    assert losses.parts["span"] == losses.parts["mlm"]
    assert losses.total.item() == pytest.approx(1.5 * losses.parts["mlm"].item(), rel=1e-6)
    assert losses.counts["span"].item() == 10 < batch.mlm_labels.numel()
    assert count_predictions(batch, everything) == {"mlm": 10, "span": 10}


def test_heads_are_asked_for_by_the_weights():
    assert ObjectiveSettings().heads == ObjectiveSettings(span_form="spanbert").heads
    assert small_config(**ObjectiveSettings().heads) == small_config()
    assert ObjectiveSettings(span=0.1, span_form="spanbert").heads["span_form"] == "spanbert"
    assert ObjectiveSettings(sop=0.1).heads == {"span_form": None, "sentence_order": True}


def test_nothing_to_minimise_is_refused():
    with pytest.raises(ValueError, match=r"set objective\.mlm=1"):
        ObjectiveSettings(mlm=0.0)


def test_nothing_waits_for_the_device(batch, output, monkeypatch):
    def waits(*_):
        raise AssertionError("a device-to-host synchronisation")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    losses = pretraining_losses(output, batch, ObjectiveSettings(nsp=1.0))
    assert losses.accuracy.keys() == {"mlm", "nsp"}
