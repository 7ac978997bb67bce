"""Learning rates as functions of the number of updates made: the types that DeepSpeed has not.

`"scheduler": {"type": "WarmupPolynomialLR", "params": {"warmup_ratio": 0.2843, "degree": 0.5}}` in a DeepSpeed JSON.
DeepSpeed's own types (WarmupLR, WarmupDecayLR, WarmupCosineLR, …) go to DeepSpeed untouched.

    WarmupConstantLR       the peak, for ever
    WarmupPolynomialLR     left^degree: linear, NVIDIA's square root …
    WarmupCosineDecayLR    half a cosine
    WarmupExponentialLR    decay_rate^(updates / decay_steps), as DeepSpeed trained BERT

In each the rate after the warm-up is what Hugging Face's schedule of that shape has after as many updates; in the
warm-up it is one update ahead, because theirs begins with an update of rate 0. NVIDIA's counts from 1 all along: ours
is equal in the warm-up, and then an update behind, so that the last one has a rate too.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field

from nezha_ds.config import Settings, build, nearest
from nezha_ds.errors import ConfigError


class ScheduleSettings(Settings):
    """The `params` of a scheduler of ours."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Updates of warm-up; alternatively warmup_ratio."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """The warm-up as a share of all steps."""
    warmup_degree: float = Field(default=1.0, gt=0)
    """Power of the warm-up: 1 is linear, 2 DeepSpeed's for BERT."""
    start_factor: float = Field(default=0.0, ge=0, le=1)
    """Where the warm-up rises from, as a share of the peak."""
    total_num_steps: int | None = Field(default=None, ge=1)
    """Where the decay ends; by default the recipe's train.steps."""
    degree: float = Field(default=1.0, gt=0)
    """Power of a polynomial decay: 1 is linear, 0.5 NVIDIA's for LAMB."""
    decay_rate: float = Field(default=0.9, gt=0, le=1)
    """What an exponential decay multiplies the rate with in every decay_steps updates; 0.9 is DeepSpeed's for BERT."""
    decay_steps: int = Field(default=250, ge=1)
    """Updates in which an exponential decay multiplies the rate with decay_rate once."""
    decay_from_start: bool = False
    """Count the decay from step 0, as NVIDIA does: the rate drops at the end of the warm-up. Otherwise from there."""
    end_factor: float = Field(default=0.0, ge=0, le=1)
    """What the rate falls to, as a share of the peak."""


Shape = Literal["constant", "polynomial", "cosine", "exponential"]
SCHEDULES: dict[str, Shape] = {
    "WarmupConstantLR": "constant",
    "WarmupPolynomialLR": "polynomial",
    "WarmupCosineDecayLR": "cosine",
    "WarmupExponentialLR": "exponential",
}

_DECAYS: dict[Shape, Callable[[float, int, ScheduleSettings], float]] = {
    "constant": lambda left, past, settings: 1.0,
    "polynomial": lambda left, past, settings: left**settings.degree,
    "cosine": lambda left, past, settings: (1 - math.cos(math.pi * left)) / 2,
    "exponential": lambda left, past, settings: settings.decay_rate ** (past / settings.decay_steps),
}
"""From the share of the decay that is left and the updates that are past, to the share of the peak."""

_OF_DECAYS: dict[Shape, set[str]] = {
    "constant": set(),
    "polynomial": {"degree", "decay_from_start", "end_factor"},
    "cosine": {"decay_from_start", "end_factor"},
    "exponential": {"decay_rate", "decay_steps", "decay_from_start", "end_factor"},
}
"""The params that each shape reads, of those that shape a decay."""


def factor(done: int, warmup: int, total: int, settings: ScheduleSettings, shape: Shape) -> float:
    """The share of the peak learning rate for the update after `done` updates.

    Rises to 1 at update number `warmup`, never 0; then falls to `end_factor` after update number `total`.
    """
    if done < warmup:
        risen = ((done + 1) / warmup) ** settings.warmup_degree
        return settings.start_factor + (1 - settings.start_factor) * risen
    start = 0 if settings.decay_from_start else warmup
    left = max(0.0, 1 - (done - start) / max(1, total - start))
    return settings.end_factor + (1 - settings.end_factor) * _DECAYS[shape](left, done - start, settings)


def square_root_lr(lr: float, batch: int, new_batch: int) -> float:
    """The peak rate for another batch: it grows with the root of the batch, as in the LAMB paper (arXiv 1904.00962)."""
    return lr * math.sqrt(new_batch / batch)


def scaled_warmup(settings: ScheduleSettings, batch: int, new_batch: int) -> ScheduleSettings:
    """The warm-up for another batch at as many samples in all: its share of the steps grows with the batch.

    Those are as many steps as before, so that `warmup_steps` stay. ConfigError when it would be longer than the run.
    """
    if settings.warmup_ratio is None:
        return settings
    ratio = settings.warmup_ratio * new_batch / batch
    if ratio > 1:
        raise ConfigError(
            f"a warm-up of {settings.warmup_ratio} at a batch of {batch:,} would be {ratio:.2f} of all steps at "
            f"{new_batch:,}; begin from a JSON with a shorter warm-up or a larger batch"
        )
    return settings.model_copy(update={"warmup_ratio": ratio})


class Schedule:
    """Sets the learning rate of an optimizer before each update; DeepSpeed calls `step` after each one made."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: ScheduleSettings, shape: Shape, default_total: int
    ) -> None:
        self._optimizer = optimizer
        self._settings = settings
        self._shape: Shape = shape
        self._total = settings.total_num_steps or default_total
        self._warmup = _warmup_steps(settings, self._total)
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._done = 0
        self._apply()

    def step(self, _: Any = None) -> None:
        """One more update was made."""
        self._done += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group for the next update."""
        return [group["lr"] for group in self._optimizer.param_groups]

    get_lr = get_last_lr

    def state_dict(self) -> dict[str, int]:
        """Updates made so far."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the updates of `state`."""
        self._done = int(state["done"])
        self._apply()

    def _apply(self) -> None:
        share = factor(self._done, self._warmup, self._total, self._settings, self._shape)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share


def is_ours(kind: str) -> bool:
    """Whether a scheduler type of the JSON is one of these."""
    return kind in SCHEDULES


def schedule_settings(kind: str, params: dict[str, Any], origin: str) -> ScheduleSettings:
    """Validate the `params` of one of our types; ConfigError names the value and the way out."""
    if kind not in SCHEDULES:
        raise ConfigError(f"{origin}: unknown scheduler {kind!r}{nearest(kind, SCHEDULES)}")
    settings = build(ScheduleSettings, params, origin)
    for name in sorted((params.keys() & set().union(*_OF_DECAYS.values())) - _OF_DECAYS[SCHEDULES[kind]]):
        raise ConfigError(f"{origin}: {name} does nothing in {kind}; leave it out, or take another type")
    if settings.warmup_steps is not None and settings.warmup_ratio is not None:
        raise ConfigError(f"{origin}: warmup_steps and warmup_ratio both say how long the warm-up is; keep one")
    return settings


def _warmup_steps(settings: ScheduleSettings, total: int) -> int:
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return round((settings.warmup_ratio or 0.0) * total)
