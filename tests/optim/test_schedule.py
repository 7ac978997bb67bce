"""The schedules as curves, beside closed formulas and other people's, and as what DeepSpeed steps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import optimization as hf

from nezha_ds.errors import ConfigError
from nezha_ds.optim.schedule import (
    SCHEDULES,
    Schedule,
    ScheduleSettings,
    factor,
    scaled_warmup,
    schedule_settings,
    square_root_lr,
)

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
"""Hugging Face's schedulers miss the updates, which are not the point here."""

shapes = st.sampled_from(["polynomial", "cosine", "exponential"])


def optimizer(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(schedule, steps: int) -> list[float]:
    """The rate of each update."""
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.step()
    return found


@given(st.integers(1, 500), st.integers(0, 200), st.sampled_from([0.5, 1.0, 2.0]), st.floats(0, 1), shapes)
def test_it_rises_to_the_peak_and_falls_to_the_end(total, warmup, degree, end, shape):
    warmup = min(warmup, total)
    settings = ScheduleSettings(degree=degree, warmup_degree=degree, end_factor=end)
    curve = [factor(done, warmup, total, settings, shape) for done in range(total)]
    assert all(0 < share <= 1 for share in curve)
    assert curve[:warmup] == sorted(curve[:warmup])
    assert curve[warmup:] == sorted(curve[warmup:], reverse=True)
    assert max(curve) == pytest.approx(1)
    if shape != "exponential":
        last = factor(total, warmup, total, settings, shape)
        assert last == pytest.approx(end if warmup < total else 1.0)


@given(st.integers(0, 30), st.integers(1, 60), st.floats(0.1, 3))
def test_each_shape_is_its_formula(warmup, decay, degree):
    """Between the warm-up and the end, by hand."""
    total, settings = warmup + decay, ScheduleSettings(degree=degree, decay_rate=0.8, decay_steps=7, end_factor=0.25)
    for past in range(decay + 1):
        formulas = {
            "polynomial": (1 - past / decay) ** degree,
            "cosine": math.cos(math.pi / 2 * past / decay) ** 2,
            "exponential": math.exp(math.log(0.8) * past / 7),
        }
        for shape, expected in formulas.items():
            found = factor(warmup + past, warmup, total, settings, shape)
            assert found == pytest.approx(0.25 + 0.75 * expected, abs=1e-12)
        assert factor(warmup + past, warmup, total, ScheduleSettings(), "constant") == 1.0


HUGGING_FACE = {
    "WarmupConstantLR": lambda made, warmup, total: hf.get_constant_schedule_with_warmup(made, warmup),
    "WarmupPolynomialLR": hf.get_linear_schedule_with_warmup,
    "WarmupCosineDecayLR": hf.get_cosine_schedule_with_warmup,
}


@pytest.mark.parametrize("kind", HUGGING_FACE)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_hugging_faces_schedules_begin_at_zero_and_are_ours_after_the_warm_up(kind, warmup):
    ours = rates(Schedule(optimizer(), ScheduleSettings(warmup_steps=warmup), SCHEDULES[kind], 40), 41)
    theirs = rates(HUGGING_FACE[kind](optimizer(), warmup, 40), 41)
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1])
    assert ours[warmup:] == pytest.approx(theirs[warmup:])


@pytest.mark.parametrize("degree", [0.5, 2.0])
def test_hugging_faces_polynomial_too(degree):
    settings = ScheduleSettings(warmup_steps=5, degree=degree, end_factor=0.1)
    ours = rates(Schedule(optimizer(), settings, "polynomial", 40), 41)
    theirs = rates(hf.get_polynomial_decay_schedule_with_warmup(optimizer(), 5, 40, lr_end=0.1, power=degree), 41)
    assert ours[5:] == pytest.approx(theirs[5:])


@pytest.mark.parametrize(("steps", "ratio"), [(7038, 0.2843), (1563, 0.128)])
def test_nvidias_schedule_is_ours_but_for_where_it_counts_from(steps, ratio):
    """PolyWarmUpScheduler, DeepLearningExamples: its update number t = 1 … steps, the last one with a rate of 0."""

    def nvidia(t: int) -> float:
        progress = t / steps
        return progress / ratio if progress < ratio else (1 - progress) ** 0.5

    settings = ScheduleSettings(warmup_ratio=ratio, degree=0.5, decay_from_start=True)
    ours, warmup = rates(Schedule(optimizer(), settings, "polynomial", steps), steps), round(ratio * steps)
    # Its warm-up is not a whole number of updates: 2,000.9 and 200.06.
    assert ours[: warmup - 1] == pytest.approx([nvidia(t) for t in range(1, warmup)], rel=1e-3)
    assert ours[warmup + 1 :] == pytest.approx([nvidia(t) for t in range(warmup + 1, steps)])


def test_deepspeeds_schedule_of_bert():
    """bing_bert's "EE" with its offset: lr · (step / warm-up)², then lr · 0.9^(steps / 250), and 1e-3 throughout."""

    def bing_bert(step: int) -> float:
        return 1e-3 + 11e-3 * ((step / 450) ** 2 if step < 450 else 0.9 ** ((step - 450) / 250))

    both = {"start_factor": 1 / 12, "end_factor": 1 / 12}
    params = {"warmup_steps": 450, "warmup_degree": 2, "decay_rate": 0.9, "decay_steps": 250, **both}
    settings = schedule_settings("WarmupExponentialLR", params, "bing_bert")
    ours = rates(Schedule(optimizer(12e-3), settings, "exponential", 7500), 7500)
    assert ours[:449] == pytest.approx([bing_bert(step) for step in range(1, 450)])
    assert ours[450:] == pytest.approx([bing_bert(step) for step in range(450, 7500)])


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_resumed_schedule_goes_on_exactly(kind):
    settings = ScheduleSettings(warmup_steps=3)
    whole = rates(Schedule(optimizer(0.3), settings, SCHEDULES[kind], 10), 10)
    assert whole[2] == pytest.approx(0.3)
    for done in range(10):
        stopped = Schedule(optimizer(0.3), settings, SCHEDULES[kind], 10)
        rates(stopped, done)
        resumed = Schedule(optimizer(0.3), settings, SCHEDULES[kind], 10)
        resumed.load_state_dict(stopped.state_dict())
        assert rates(resumed, 10 - done) == whole[done:]


def test_the_root_rule_gives_the_papers_table():
    """LAMB paper, table 4 of batches at equal epochs: 5 / (2^k · 10³) and warm-up shares from 1/320 to 1/5."""
    base, settings = 5 / (2**3 * 1e3), ScheduleSettings(warmup_ratio=1 / 320)
    for doublings in range(7):
        batch = 512 * 2**doublings
        assert square_root_lr(base, 512, batch) == pytest.approx(5 / (2 ** (3 - doublings / 2) * 1e3))
        assert scaled_warmup(settings, 512, batch).warmup_ratio == pytest.approx(2**doublings / 320)
    with pytest.raises(ConfigError, match=r"would be 1\.60 of all steps at 262,144"):
        scaled_warmup(settings, 512, 512 * 512)
    steps = ScheduleSettings(warmup_steps=1800)
    assert scaled_warmup(steps, 512, 4096) == steps


@pytest.mark.parametrize(
    ("kind", "params", "reason"),
    [
        ("WarmupPolynomialLR", {"warmup_steps": 3, "warmup_ratio": 0.1}, "keep one"),
        ("WarmupPolynomialLR", {"warmup_ratio": 1.5}, "less than or equal to 1"),
        ("WarmupPolynomialLR", {"warmup_steps": -1}, "greater than or equal to 0"),
        ("WarmupPolynomialLR", {"warmup": 3}, "did you mean"),
        ("WarmupPolynomialLR", {"decay_rate": 0.5}, "decay_rate does nothing in WarmupPolynomialLR; leave it out"),
        ("WarmupConstantLR", {"end_factor": 0.1}, "end_factor does nothing in WarmupConstantLR"),
        ("WarmupCosineDecayLR", {"degree": 2.0}, "degree does nothing in WarmupCosineDecayLR"),
        ("WarmupExponentialLR", {"degree": 2.0}, "degree does nothing in WarmupExponentialLR"),
        ("WarmupCosinLR", {}, "unknown scheduler 'WarmupCosinLR'; did you mean 'WarmupCosineDecayLR'"),
    ],
)
def test_impossible_settings_are_refused(kind, params, reason):
    with pytest.raises(ConfigError, match=reason):
        schedule_settings(kind, params, "x.json: scheduler.params")
