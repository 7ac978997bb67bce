"""The order looks like chance wherever one looks, but for the windows that it is made of."""

import numpy as np
import pytest

from nezha_ds.data.order import WINDOW, Order
from tests.data.mixing import Mixing, chi_square, measure


@pytest.fixture(scope="module", params=[1, 2])
def mixing(request) -> Mixing:
    return measure(shards=96, samples=500, batch=1024, seed=request.param)


def test_nothing_correlates_that_should_not(mixing):
    """Five deviations of a correlation by chance; that of place and number is by whole windows: 12 of them here."""
    chance = 5 / np.sqrt(mixing.samples)
    assert max(map(abs, mixing.lags_in_window.values())) < chance
    # Shards come in 96 turns: their correlation deviates by 1 / sqrt(96).
    assert abs(mixing.spearman) < 5 / np.sqrt(96)
    assert abs(mixing.epochs) < 5 / np.sqrt(96)
    # Samples of a window are of the same 8 of 96 shards: (1/8 - 1/96) of the variance is the windows' own, within half.
    expected = (1 / WINDOW - 1 / 96) / (1 - 1 / 96)
    assert all(abs(lag / expected - 1) < 0.6 for lag in mixing.lags.values())


def test_a_batch_holds_every_shard_of_its_window_by_an_equal_share(mixing):
    fewest, mean, most = mixing.shards_in_batch
    assert (fewest, most) == (WINDOW, 2 * WINDOW)
    assert WINDOW <= mean < 1.5 * WINDOW
    # Binomial: 128 of 1,024 by chance, and 5 deviations of 10.6 more.
    assert mixing.share_of_shard < (128 + 5 * 10.6) / 1024


def test_shards_and_samples_come_anywhere_with_equal_chance(mixing):
    for value, freedom in (mixing.turns, mixing.places):
        assert abs(value - freedom) < 5 * np.sqrt(2 * freedom)


def test_the_report_finds_an_order_that_is_none(monkeypatch):
    """An order that rotates the samples has all faults at once."""

    def rotated(self, numbers):
        return (numbers + numbers // self.samples * 7) % self.samples

    monkeypatch.setattr(Order, "sample", rotated)
    found = measure(shards=16, samples=100, batch=64, epochs=10)
    assert found.spearman > 0.99 and found.epochs > 0.9 and found.lags[1] > 0.99
    assert found.shards_in_batch[2] <= 2 and found.share_of_shard == 1
    assert found.turns[0] > 5 * found.turns[1]
    assert found.places[0] > 4 * found.places[1]


def test_chi_square():
    assert chi_square(np.array([[10, 20, 30]])) == (10.0, 2)
