"""Dropout: what is dropped, where and how often, is what transformers 4.57.6 drops.

Two generators give no equal masks, so that moments are compared, over thousands of copies of one row in training mode:
mean and variance of every state after every layer, whose difference must be within its own standard error times a bound
that chance exceeds once in 10^10 tries. Masks themselves, recorded where our model draws them, have their exact rates
and scale, and no two places of them have anything in common.
"""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from nezha_ds.model.attention import BODIES, reference_attention
from nezha_ds.model.hf import save_folder, state_dict_to_hf
from nezha_ds.model.nezha import Dropout, padding_mask
from nezha_ds.model.relative import relative_rows, relative_table
from tests.model.samples import lively_model, random_batch, save_batch, serving_bodies, small_config

COPIES = 4096
BOUND = 6.5
"""Standard errors: 8e-11 of a normal distribution lie beyond."""
RATES = {
    "attention": {"attention_probs_dropout_prob": 0.2, "hidden_dropout_prob": 0.0},
    "hidden": {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.2},
    "both": {},
}
"""By the model's two settings; 0.1 for both by default, as released."""
RUNS = [(rates, body) for rates in RATES for body in serving_bodies()]


def model_and_row(rates):
    """Two layers, and a row of nine tokens and three of padding, so that the clip of 3 and the mask are in play."""
    model = lively_model(small_config(max_relative_position=3, **RATES[rates]))
    batch = random_batch([12, 9], predictions=1)
    row = {name: getattr(batch, name)[1:] for name in ("input_ids", "token_type_ids", "lengths")}
    return model, row


@pytest.fixture(scope="module")
def theirs(oracle, tmp_path_factory):
    """transformers' moments by the name in RATES."""
    folder = tmp_path_factory.mktemp("dropout")
    for rates in RATES:
        model, row = model_and_row(rates)
        save_folder(state_dict_to_hf(model), model.config, folder / "dropout" / rates)
        save_batch(replace(random_batch([1]), **row), folder / "dropout" / rates / "batch.npz", copies=COPIES)
    oracle(folder)
    return {rates: load_file(folder / "dropout" / rates / "results.safetensors") for rates in RATES}


def states_under_dropout(rates, body):
    """(COPIES, L, D) after the embeddings and after each block."""
    model, row = model_and_row(rates)
    states = []
    for module in (model.encoder.embeddings, *model.encoder.blocks):
        module.register_forward_hook(lambda module, given, output: states.append(output))
    for block in model.encoder.blocks:
        block.attention.body = BODIES[body]
    torch.manual_seed(0)
    with torch.no_grad():
        copies = {name: tensor.expand(COPIES, *tensor.shape[1:]) for name, tensor in row.items()}
        model.train().encoder(**copies)
    return states


@pytest.mark.oracle
@pytest.mark.parametrize(("rates", "body"), RUNS, ids=lambda value: value)
def test_states_have_the_mean_and_the_variance_of_transformers(theirs, rates, body):
    for layer, states in enumerate(states_under_dropout(rates, body)):
        length = 9
        mean, variance, fourth = (
            theirs[rates][f"{layer}/{moment}"][:length] for moment in ("mean", "variance", "fourth")
        )
        states = states[:, :length]
        centred = states - states.mean(0)
        spread = centred.square().mean(0)
        # Standard errors of a mean and of a variance, of theirs and ours together.
        of_mean = ((variance + spread) / COPIES).sqrt()
        of_variance = ((fourth - variance**2 + centred.pow(4).mean(0) - spread**2) / COPIES).sqrt()
        if not layer and rates == "attention":  # nothing is dropped yet
            torch.testing.assert_close(states.mean(0), mean, atol=1e-5, rtol=1e-5)
            continue
        assert ((states.mean(0) - mean).abs() <= BOUND * of_mean).all(), layer
        assert ((spread - variance).abs() <= BOUND * of_variance).all(), layer
        # And no smaller than chance makes them, so that the bound means something.
        assert 0.25 < (((states.mean(0) - mean) / of_mean) ** 2).mean() < 4


# ----------------------------------------------------------------------------------------------- the order of attention


def wrong_order(q, k, v, table, mask, dropout):
    """The position term of the values from probabilities that nothing was dropped from."""
    kept = []
    positions = reference_attention(
        q, k, torch.zeros_like(v), table, mask, lambda shares: kept.append(shares) or shares
    )
    return positions + dropout(kept[0]) @ v


def excess(body, rate):
    """How far mean and variance of an output are from what theory says, in standard errors: the largest of all outputs.

    z_i = Σ_j drop(p_ij) (v_j + a_ij) has the mean Σ_j p_ij (v_j + a_ij) and the variance
    rate / (1 - rate) · Σ_j p_ij² (v_j + a_ij)².
    """
    generator = torch.Generator().manual_seed(2)
    length, size, clip = 9, 4, 3
    q, k, v = (torch.randn(1, 2, length, size, generator=generator) for _ in range(3))
    table, mask = relative_table(clip, size), padding_mask(torch.tensor([7]), length, torch.float32)
    kept = []
    mean = reference_attention(q, k, v, table, mask, lambda shares: kept.append(shares) or shares)[0]
    rows = relative_rows(length, clip)
    # (B, N, L, L, 1) · (B, N, L, L, H), summed over the keys.
    variance = rate / (1 - rate) * (kept[0][..., None] * (v[:, :, None] + table[rows])).square().sum(3)[0]
    torch.manual_seed(3)
    many = [each.expand(COPIES, *each.shape[1:]) for each in (q, k, v)]
    output = body(*many, table, mask.expand(COPIES, -1, -1, -1), Dropout(rate).train())
    centred = output - output.mean(0)
    spread = centred.square().mean(0)
    of_mean, of_variance = (spread / COPIES).sqrt(), ((centred.pow(4).mean(0) - spread**2) / COPIES).sqrt()
    return float(torch.maximum((output.mean(0) - mean).abs() / of_mean, (spread - variance).abs() / of_variance).max())


@pytest.mark.parametrize("body", serving_bodies())
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_what_is_dropped_is_dropped_from_the_position_term_too(body, rate):
    assert excess(BODIES[body], rate) < BOUND


def test_the_other_order_would_be_noticed():
    assert excess(wrong_order, 0.1) > 5 * BOUND


# ------------------------------------------------------------------------------------------------------ the masks alone


def recorded_masks(body, rate):
    """Each Dropout's share of what it drops, what it multiplies the rest by, and its mask (COPIES, places)."""
    model = lively_model(
        small_config(hidden_dropout_prob=rate, attention_probs_dropout_prob=rate, max_relative_position=3)
    )
    calls = []
    for module in model.encoder.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda module, given, output: calls.append((given[0], output)))
    for block in model.encoder.blocks:
        block.attention.body = BODIES[body]
    row = random_batch([6], predictions=1)
    copies = [getattr(row, name) for name in ("input_ids", "token_type_ids", "lengths")]
    torch.manual_seed(5)
    with torch.no_grad():
        model.train().encoder(*(tensor.expand(COPIES, *tensor.shape[1:]) for tensor in copies))
    for given, output in calls:
        assert given.count_nonzero() == given.numel()
        dropped = output == 0
        yield float(dropped.double().mean()), (output / given)[~dropped], dropped.reshape(COPIES, -1).double()


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("body", ["reference", "table"])  # others may draw masks of their own: see `excess`
def test_masks_have_their_rate_and_scale_and_no_two_places_depend_on_each_other(body, rate):
    shares, scales, masks = zip(*recorded_masks(body, rate), strict=True)
    # Embeddings; for each of two layers: attention, and what each of two sublayers adds.
    assert [mask.shape[1] for mask in masks].count(4 * 6 * 6) == 2
    assert [mask.shape[1] for mask in masks].count(6 * 32) == 5
    for share, scale, mask in zip(shares, scales, masks, strict=True):
        # The rate is a multiple of 1/65536.
        assert abs(share - rate) < BOUND * (rate * (1 - rate) / mask.numel()) ** 0.5 + 1e-5
        torch.testing.assert_close(scale, torch.full_like(scale, 1 / (1 - rate)), rtol=3e-5, atol=0)
    # All places of all layers: heads, queries, keys, features.
    correlations = torch.corrcoef(torch.cat(masks, dim=1).T)
    errors = correlations.triu(1)[torch.ones_like(correlations).triu(1).bool()] * COPIES**0.5
    assert errors.abs().max() < BOUND + 0.5  # of 780,000 pairs
    assert abs(errors.square().mean() - 1) < 0.02
