"""Each of the five kinds against its equation; what is learned, cast, saved and refused."""

import math

import pytest
import torch
from torch import nn

from nezha_ds.errors import DataError
from nezha_ds.model.attention import BODIES
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.nezha import RESIDUALS, Nezha
from nezha_ds.model.positions import KINDS, Positions
from nezha_ds.model.relative import relative_rows, relative_table
from tests.model.samples import lively_model, random_batch, small_config

RELATIVE = [name for name, kind in KINDS.items() if kind.relative]
LEARNED = [name for name, kind in KINDS.items() if kind.learned]
BOUNDED = [name for name, kind in KINDS.items() if kind.bounded]
ARCHITECTURES = [(positions, norm) for positions in KINDS for norm in RESIDUALS]


def states(model, ids):
    return model.encoder(ids, torch.zeros_like(ids), torch.full((len(ids),), ids.shape[1]))


def some_ids(length, seed=0):
    return torch.randint(1, 71, (1, length), generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------------------- the equations


def test_by_default_the_table_is_the_released_one():
    assert torch.equal(Positions(small_config(max_relative_position=5)).weight, relative_table(5, 8))


def test_unclipped_rows_are_the_papers_sines_of_the_distance():
    rows = Positions(small_config(positions="functional-relative-unclipped", max_position_embeddings=40)).weight
    assert rows.shape == (79, 8)
    index = relative_rows(40, 39)
    for i, j in ((0, 0), (0, 39), (39, 0), (17, 12), (3, 30)):
        for k in range(4):
            angle = (j - i) * 10000 ** (-2 * k / 8)
            assert rows[index[i, j], 2 * k].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert rows[index[i, j], 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_computed_absolute_positions_are_the_transformers_as_large_as_fresh_words():
    config = small_config(positions="functional-absolute", initializer_range=0.03, max_position_embeddings=50)
    rows = Positions(config).weight
    assert rows.shape == (50, 32)
    assert rows.pow(2).mean().sqrt().item() == pytest.approx(0.03)
    scale = 0.03 * 2**0.5
    for i in (0, 1, 49):
        for k in range(16):
            assert rows[i, 2 * k].item() == pytest.approx(scale * math.sin(i * 10000 ** (-2 * k / 32)), abs=1e-7)
            assert rows[i, 2 * k + 1].item() == pytest.approx(scale * math.cos(i * 10000 ** (-2 * k / 32)), abs=1e-7)


@pytest.mark.parametrize("positions", BOUNDED[1:])
def test_absolute_rows_are_added_before_the_layernorm(positions):
    embeddings = lively_model(small_config(positions=positions)).encoder.embeddings
    ids = some_ids(9)
    summed = embeddings.words(ids) + embeddings.types(ids * 0) + embeddings.positions.weight[:9]
    assert torch.equal(embeddings(ids, ids * 0), embeddings.norm(summed))


def test_pre_ln_is_its_equations():
    """x + Attention(LN(x)), then x + FFN(LN(x)), and a LayerNorm at the end."""
    model, ids = lively_model(small_config(norm="pre", num_hidden_layers=1)), some_ids(9)
    encoder, block = model.encoder, model.encoder.blocks[0]
    hidden = encoder.embeddings(ids, ids * 0)
    mask = torch.zeros(1, 1, 1, 9)
    hidden = hidden + block.attention(block.attention_norm(hidden), encoder.positions.weight, mask)
    hidden = hidden + block.narrow(nn.functional.gelu(block.widen(block.narrow_norm(hidden))))
    torch.testing.assert_close(states(model, ids), encoder.final_norm(hidden))


# ---------------------------------------------------------------------------------------------------------- the weights


@pytest.mark.parametrize("positions", KINDS)
def test_computed_rows_are_cast_and_never_saved_and_learned_ones_are_weights(positions):
    model = Nezha(small_config(positions=positions)).bfloat16()
    names = {name for name in model.state_dict() if "positions" in name}
    rows = model.positions or model.embeddings.positions
    assert rows.weight.dtype == torch.bfloat16
    assert rows.weight.requires_grad == (positions in LEARNED)
    assert names == ({"positions.weight", "embeddings.positions.weight"} & names if positions in LEARNED else set())
    assert len(names) == (positions in LEARNED)


@pytest.mark.parametrize("positions", LEARNED)
def test_learned_rows_start_as_other_weights_do(positions):
    config = small_config(positions=positions, hidden_size=128, initializer_range=0.03)
    encoder = NezhaForPreTraining(config).encoder
    rows = (encoder.positions or encoder.embeddings.positions).weight
    assert rows.std().item() == pytest.approx(0.03, rel=5 / (2 * rows.numel()) ** 0.5)


@pytest.mark.parametrize(("positions", "norm"), ARCHITECTURES)
def test_every_weight_takes_part(positions, norm):
    model = lively_model(small_config(positions=positions, norm=norm, max_position_embeddings=16))
    output = model(random_batch([16, 8]))
    (output.mlm_logits.logsumexp(-1).sum() + output.nsp_logits[:, 0].sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("body", ["auto", "table", "reference"])
def test_a_learned_table_gets_the_gradient_of_finite_differences(body):
    """Five tokens and a clip of three: distances within, at and beyond it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 2, generator=generator).double() for _ in range(3))
    table = torch.randn(2 * 3 + 1, 2, generator=generator).double().requires_grad_()
    mask = torch.tensor([0, 0, 0, 0, -1e9]).double()[None, None, None]
    assert torch.autograd.gradcheck(lambda rows: BODIES[body](q, k, v, rows, mask, lambda shares: shares), (table,))


def test_a_learned_table_gets_the_references_gradient_at_full_size_in_every_layer():
    batch, found = random_batch([150, 90]), {}
    for body in ("table", "reference"):
        config = small_config(positions="learned-relative", attention=body, hidden_size=128, num_attention_heads=2)
        model = lively_model(config)
        model(batch).mlm_logits.logsumexp(-1).sum().backward()
        found[body] = model.encoder.positions.weight.grad
    torch.testing.assert_close(found["table"], found["reference"], atol=1e-5, rtol=1e-4)


def test_a_learned_table_is_trained_through_long_sequences_too():
    """From 400 tokens on `auto` takes on a CPU a body that trains none, where it may."""
    model = lively_model(small_config(positions="learned-relative", num_hidden_layers=1))
    states(model, some_ids(410)).square().sum().backward()
    assert model.encoder.positions.weight.grad.abs().sum(1).all()


# ---------------------------------------------------------------------------------------------------------- the lengths


@pytest.mark.parametrize("positions", KINDS)
def test_a_sequence_beyond_the_positions_is_refused_where_they_end(positions):
    model = lively_model(small_config(positions=positions, max_position_embeddings=20))
    assert states(model, some_ids(20)).isfinite().all()
    if positions not in BOUNDED:
        assert states(model, some_ids(21)).isfinite().all()
        return
    with pytest.raises(DataError) as caught:
        states(model, some_ids(21))
    assert str(caught.value) == (
        f"the sequence has 21 tokens, and positions = '{positions}' tell 20 apart (max_position_embeddings); shorten it"
    )


@pytest.mark.parametrize("positions", KINDS)
def test_order_is_seen_and_padding_is_not(positions):
    model, batch = lively_model(small_config(positions=positions)), random_batch([40, 13])
    whole = model.encoder(batch.input_ids, batch.token_type_ids, batch.lengths)
    alone = model.encoder(batch.input_ids[1:, :13], batch.token_type_ids[1:, :13], batch.lengths[1:])
    torch.testing.assert_close(whole[1:, :13], alone, atol=1e-5, rtol=1e-5)
    ids = some_ids(12)
    swapped = ids[:, [0, 1, 3, 2, *range(4, 12)]]
    assert (states(model, ids)[0, 0] - states(model, swapped)[0, 0]).abs().max() > 1e-3
