import pytest
import torch

from nezha_ds.model.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_zeroes_at_the_rate_and_keeps_the_expectation(rate, dtype):
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1000, 401, dtype=dtype), rate)
    share = (dropped == 0).double().mean().item()
    # Four standard deviations of a mean of 401,000 draws, plus the rounding of the rate.
    assert share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / dropped.numel()) ** 0.5 + 1e-5)
    assert dropped.max().item() == pytest.approx(1 / (1 - rate), rel=1e-2 if dtype == torch.bfloat16 else 1e-4)
    assert dropped.unique().numel() == 2


def test_the_finest_rates_are_kept_too():
    # Two of 65,536 levels: 128 ± 11 of 4 million elements.
    torch.manual_seed(3)
    dropped = (dropout(torch.ones(1 << 22), 2 / 65536) == 0).sum().item()
    assert dropped == pytest.approx(128, abs=44)


def test_neighbours_are_dropped_independently():
    # Four elements share one draw: no pair of its places may go together.
    torch.manual_seed(1)
    dropped = (dropout(torch.ones(200_000), 0.5) == 0).double().view(-1, 4)
    correlations = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlations.abs().max() < 0.02


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_any_number_of_elements_and_the_same_mask_for_the_same_seed(size):
    x = torch.arange(1.0, size + 1)
    torch.manual_seed(2)
    first = dropout(x, 0.5)
    torch.manual_seed(2)
    assert torch.equal(first, dropout(x, 0.5))


def test_the_gradient_passes_where_the_value_did():
    x = torch.ones(1000, requires_grad=True)
    dropped = dropout(x, 0.3)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())


def test_rate_zero_is_nothing_at_all():
    x = torch.randn(3)
    state = torch.get_rng_state()
    assert dropout(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), state)
