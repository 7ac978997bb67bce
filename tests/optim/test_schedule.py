"""The schedules as curves, and as what DeepSpeed steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.errors import ConfigError
from nezha_ds.optim.schedule import Schedule, ScheduleSettings, factor, schedule_settings


@given(st.integers(1, 500), st.integers(0, 200), st.sampled_from([0.5, 1.0, 2.0]), st.floats(0, 1))
def test_it_rises_to_the_peak_and_falls_to_the_end(total, warmup, degree, end):
    warmup = min(warmup, total)
    settings = ScheduleSettings(degree=degree, end_factor=end)
    curve = [factor(done, warmup, total, settings, "polynomial") for done in range(total)]
    assert all(0 < share <= 1 for share in curve) or end == 0 == warmup - total
    assert curve[:warmup] == sorted(curve[:warmup])
    assert curve[warmup:] == sorted(curve[warmup:], reverse=True)
    assert factor(total, warmup, total, settings, "polynomial") == pytest.approx(end if warmup < total else 1.0)


def test_nvidias_numbers():
    """Phase 1 of BERT-large with LAMB: 7,038 steps, 28.43% warm-up, (1 - step/steps)^0.5 after it."""
    settings = ScheduleSettings(degree=0.5, decay_from_start=True)
    warmup = round(0.2843 * 7038)
    assert factor(warmup - 1, warmup, 7038, settings, "polynomial") == 1.0
    for step in (warmup, 4000, 7037):
        assert factor(step, warmup, 7038, settings, "polynomial") == pytest.approx((1 - step / 7038) ** 0.5)


def test_a_resumed_schedule_goes_on():
    def optimizer():
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)

    settings = ScheduleSettings(warmup_steps=3)
    whole = Schedule(optimizer(), settings, "polynomial", 10)
    rates = []
    for _ in range(10):
        rates.append(whole.get_last_lr()[0])
        whole.step()
    resumed = Schedule(optimizer(), settings, "polynomial", 10)
    resumed.load_state_dict({"done": 6})
    assert resumed.get_last_lr()[0] == rates[6]
    assert rates[2] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "keep one"),
        ({"warmup_ratio": 1.5}, "less than or equal to 1"),
        ({"warmup_steps": -1}, "greater than or equal to 0"),
        ({"warmup": 3}, "did you mean"),
    ],
)
def test_impossible_settings_are_refused(params, reason):
    with pytest.raises(ConfigError, match=reason):
        schedule_settings("WarmupPolynomialLR", params, "x.json: scheduler.params")
