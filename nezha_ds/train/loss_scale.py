"""The loss scale of fp16: what a JSON may say of it, when it moves, and where it ends.

DeepSpeed's ZeRO optimizer multiplies the loss by the scale, finds overflows on all ranks together, and keeps the rule:
a step that overflows is skipped; once `hysteresis` is used up, every overflow halves the scale, to `min_loss_scale` and
no further; after `loss_scale_window` sound steps it doubles, and hysteresis is whole again. Two things differ here:

- It moves the scale before it divides the gradients by it, so that an unclipped gradient counts half in the step that
  doubles the scale (DeepSpeed #8588). Here the scale moves when the step is over.
- At the minimum it raises a bare Exception. Here it is a DivergedError, raised before anything was touched: weights,
  moments, schedule and counters are those of the step before.

Nothing waits for the device that would not wait without it.
"""

from typing import Any

from pydantic import Field

from nezha_ds.config import Settings, build
from nezha_ds.errors import ConfigError, DivergedError


class Fp16Settings(Settings):
    """The section `fp16` of a DeepSpeed JSON, with DeepSpeed's names and defaults."""

    enabled: bool = False
    auto_cast: bool = False
    loss_scale: float = 0.0
    """0 is the dynamic scale, the only one that is taken: a static one skips every step once it is too high."""
    initial_scale_power: int = Field(default=16, ge=0, le=32)
    """The scale begins at 2 to this power. fp16 ends at 2^16, so what lies far above it is skipped steps."""
    loss_scale_window: int = Field(default=1000, ge=1)
    """Sound steps after which the scale doubles."""
    hysteresis: int = Field(default=2, ge=1)
    """Overflows until the scale is halved, the last one included. DeepSpeed takes 0, with which it never is."""
    consecutive_hysteresis: bool = False
    """Make hysteresis whole again after every sound step, not only after a window of them."""
    min_loss_scale: int = Field(default=1, ge=1)
    """An overflow at this scale ends the run."""
    fp16_master_weights_and_grads: bool = False


def check_loss_scale(source: str, section: dict[str, Any]) -> None:
    """ConfigError for an `fp16` section that names no sound dynamic loss scale."""
    settings = build(Fp16Settings, section, f"{source}: fp16")
    if not settings.enabled:
        return
    if settings.loss_scale != 0:
        raise ConfigError(
            f"{source}: fp16.loss_scale = {settings.loss_scale:g} cannot fall, and an overflow would be skipped for "
            "ever; write 0, and where it begins as initial_scale_power"
        )
    if settings.min_loss_scale > 2**settings.initial_scale_power:
        raise ConfigError(
            f"{source}: fp16.min_loss_scale {settings.min_loss_scale} is above the scale to begin with, "
            f"2^{settings.initial_scale_power}; lower it, or raise initial_scale_power"
        )
    if settings.fp16_master_weights_and_grads:
        raise ConfigError(
            f"{source}: fp16.fp16_master_weights_and_grads = true would keep the weights in fp16 only, in which small "
            "updates are lost; remove it"
        )


class LossScale:
    """The scale of one engine; takes the place of a method of DeepSpeed's ZeRO optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._scaler: Any = optimizer.loss_scaler
        self._overflow = False
        self._overflows_in_a_row = 0
        self._sound_norm: Any = None
        optimizer._update_scale = self._note

    @property
    def value(self) -> float:
        """What the loss of the next step is multiplied by."""
        return float(self._scaler.cur_scale)

    def settle(self) -> None:
        """Move the scale, after a step, by whether it overflowed."""
        self._scaler.update_scale(self._overflow)
        self._overflows_in_a_row = self._overflows_in_a_row + 1 if self._overflow else 0
        if not self._overflow:
            self._sound_norm = self._optimizer._global_grad_norm

    def state(self) -> dict[str, float]:
        """What moves, as plain numbers; what the JSON says is not among them."""
        return {
            "cur_scale": self.value,
            "cur_iter": self._scaler.cur_iter,
            "last_overflow_iter": self._scaler.last_overflow_iter,
            "cur_hysteresis": self._scaler.cur_hysteresis,
            "overflows_in_a_row": self._overflows_in_a_row,
        }

    def restore(self, state: dict[str, float]) -> None:
        """Go on from such numbers, within what the JSON says now; from none, those of a run in bf16, begin anew."""
        if not state:
            return
        scaler = self._scaler
        scaler.cur_scale = max(state["cur_scale"], scaler.min_scale)
        scaler.cur_iter, scaler.last_overflow_iter = state["cur_iter"], state["last_overflow_iter"]
        scaler.cur_hysteresis = min(state["cur_hysteresis"], scaler.delayed_shift)
        # Checkpoints of before this was counted lack it.
        self._overflows_in_a_row = int(state.get("overflows_in_a_row", 0))

    def _note(self, has_overflow: bool = False) -> None:
        """What DeepSpeed calls in the middle of a step, with the same answer on all ranks."""
        if has_overflow and self._scaler.cur_hysteresis == 1 and self._scaler.cur_scale == self._scaler.min_scale:
            raise DivergedError(self._diagnosis())
        self._overflow = has_overflow

    def _diagnosis(self) -> str:
        row = self._overflows_in_a_row + 1
        norm = "none yet" if self._sound_norm is None else f"{float(self._sound_norm):.3g}"
        return (
            f"gradients overflow at the minimum loss scale {self.value:g}, {row} step{'s' * (row > 1)} in a row "
            f"(last sound gradient norm: {norm}); lower optimizer.params.lr, lengthen the warm-up, or take a bf16 "
            "JSON, and start the same command again"
        )
