"""The formula counts what torch counts of the real model's matrix products; peaks go by the names that drivers give."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nezha_ds.batch import Batch
from nezha_ds.model import attention
from nezha_ds.model.config import preset
from nezha_ds.model.flops import forward_flops, peak_flops, step_flops
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses

SAMPLES, LENGTH, PREDICTIONS, VOCABULARY = 3, 40, 6, 331


def plain_attention(q, k, v, table, mask, dropout):
    """A BERT's: no positions."""
    return dropout((q @ k.transpose(2, 3) + mask).softmax(-1)) @ v


def batch(objective):
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(1, PREDICTIONS + 1).expand(SAMPLES, -1)
    ids = torch.randint(5, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    return Batch(
        input_ids=ids,
        token_type_ids=torch.zeros_like(ids),
        lengths=torch.full((SAMPLES,), LENGTH),
        mlm_positions=positions,
        mlm_labels=ids.gather(1, positions),
        sample_ids=torch.arange(SAMPLES),
        next_sentence_labels=torch.zeros(SAMPLES, dtype=torch.int64) if objective.nsp else None,
        sentence_order_labels=torch.zeros(SAMPLES, dtype=torch.int64) if objective.sop else None,
        span_boundaries=torch.stack([positions - 1, positions + 1], dim=2) if objective.span else None,
    )


def config(body, **sizes):
    return preset("tiny", vocab_size=VOCABULARY, attention=body, **sizes)


def counted(model, objective, backward):
    """What torch counts of one batch."""
    given = batch(objective)
    with FlopCounterMode(display=False) as counter:
        losses = pretraining_losses(model(given), given, objective)
        if backward:
            losses.total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "weights", [{}, {"nsp": 1}, {"sop": 1}, {"span": 1}, {"nsp": 1, "span": 1, "span_form": "spanbert"}], ids=str
)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 100},
    ],
)
def test_the_formula_is_what_torch_counts_of_a_model_without_positions(monkeypatch, sizes, weights):
    monkeypatch.setitem(attention.BODIES, "reference", plain_attention)
    objective = ObjectiveSettings(**weights)
    chosen = config("reference", **sizes, **objective.heads)
    model, nsp = NezhaForPreTraining(chosen), objective.nsp > 0
    assert SAMPLES * forward_flops(chosen, LENGTH, PREDICTIONS, nsp=nsp) == counted(model, objective, backward=False)
    assert SAMPLES * step_flops(chosen, LENGTH, PREDICTIONS, nsp=nsp) == counted(model, objective, backward=True)


def test_positions_earn_nothing(monkeypatch):
    """The reference multiplies with the table once more for scores and once more for values."""
    chosen = config("reference")
    extra = chosen.num_hidden_layers * 4 * LENGTH**2 * chosen.hidden_size
    formula = forward_flops(chosen, LENGTH, PREDICTIONS)
    assert SAMPLES * (formula + extra) == counted(NezhaForPreTraining(chosen), ObjectiveSettings(), backward=False)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-32GB", None),
        ("cpu", None),
    ],
)
def test_peaks_in_bf16_go_by_the_names_of_drivers(name, tera):
    assert peak_flops(name, torch.bfloat16) == (tera and tera * 1e12)


def test_what_came_before_ampere_has_units_for_fp16_alone():
    assert peak_flops("Tesla V100-SXM2-32GB", torch.float16) == 125e12
    assert peak_flops("Tesla V100-PCIE-16GB", torch.float16) == 112e12
    assert peak_flops("Tesla T4", torch.float16) == 65e12


def test_fp32_has_no_peak_because_it_depends_on_a_setting():
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.float32) is None


def test_base_and_large_are_as_large_as_their_records_say():
    """NVIDIA's 580 sequences/s of BERT-large at 128 on one A100 are 44% of its peak (FACTS: both heads, 20 of 128)."""
    flops = step_flops(preset("large"), 128, 20, nsp=True)
    assert 580 * flops / 312e12 == pytest.approx(0.44, abs=0.03)
