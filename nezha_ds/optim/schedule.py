"""Learning rates as functions of the number of updates made: the types that DeepSpeed has not.

`"scheduler": {"type": "WarmupPolynomialLR", "params": {"warmup_ratio": 0.2843, "degree": 0.5}}` in a DeepSpeed JSON.
DeepSpeed's own types (WarmupLR, WarmupDecayLR, WarmupCosineLR, …) go to DeepSpeed untouched.
"""

from typing import Any, Literal

import torch
from pydantic import Field

from nezha_ds.config import Settings, build, nearest
from nezha_ds.errors import ConfigError


class ScheduleSettings(Settings):
    """The `params` of a scheduler of ours."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Updates of linear warm-up; alternatively warmup_ratio."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """The warm-up as a share of all steps."""
    total_num_steps: int | None = Field(default=None, ge=1)
    """Where the decay ends; by default the recipe's train.steps."""
    degree: float = Field(default=1.0, gt=0)
    """Power of the decay: 1 is linear, 0.5 NVIDIA's for LAMB."""
    decay_from_start: bool = False
    """Count the decay from step 0, as NVIDIA does: the rate drops at the end of the warm-up. Otherwise from there."""
    end_factor: float = Field(default=0.0, ge=0, le=1)
    """The learning rate after the last update, as a share of the peak."""


Shape = Literal["polynomial", "constant"]
SCHEDULES: dict[str, Shape] = {"WarmupPolynomialLR": "polynomial", "WarmupConstantLR": "constant"}


def factor(done: int, warmup: int, total: int, settings: ScheduleSettings, shape: Shape) -> float:
    """The share of the peak learning rate for the update after `done` updates.

    Rises linearly to 1 at update number `warmup`, never 0; then falls to `end_factor` after update number `total`.
    """
    if done < warmup:
        return (done + 1) / warmup
    if shape == "constant":
        return 1.0
    start = 0 if settings.decay_from_start else warmup
    left = max(0.0, 1 - (done - start) / max(1, total - start))
    return settings.end_factor + (1 - settings.end_factor) * left**settings.degree


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
    if settings.warmup_steps is not None and settings.warmup_ratio is not None:
        raise ConfigError(f"{origin}: warmup_steps and warmup_ratio both say how long the warm-up is; keep one")
    return settings


def _warmup_steps(settings: ScheduleSettings, total: int) -> int:
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return round((settings.warmup_ratio or 0.0) * total)
