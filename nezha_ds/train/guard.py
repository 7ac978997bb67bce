"""What stands between a step's gradients and the weights: numbers that are none, and losses that jump.

Before every update each rank reads one small tensor from its device, the losses of its micro-batches and the squared
norm of the gradients that it is about to apply, and the ranks add two numbers up over the control group. Then all of
them know, and do the same:

- A loss that is NaN or infinite, or such gradients, end the run before the update: DivergedError on every rank, with a
  dump (dump.py) that `nezha-ds replay` computes again. DeepSpeed would leave such updates out in silence for ever in
  bf16 and under ZeRO, and apply them in fp32 without. In fp16 gradients are the loss scaler's business and only the
  loss, which is not scaled, counts.
- A loss far above those before it is a spike: counted, told, and with `train.skip_spikes` not applied.

Why every step: DeepSpeed itself waits for the device in every step to ask for an overflow or a norm (0.19.8: ZeRO 1
and 2, bf16 and fp16 in `step`), a moment later. Reading here moves that wait and adds none; a check every n steps would
let n updates of NaN into the moments for nothing. The cost is one pass over this rank's gradients and a control round.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from nezha_ds.batch import Batch
from nezha_ds.errors import DivergedError, LaunchError
from nezha_ds.observe.events import Event, Trouble
from nezha_ds.train.checkpoint import State
from nezha_ds.train.dump import write_dump
from nezha_ds.train.engine import Engine
from nezha_ds.train.gradients import squared_norm
from nezha_ds.train.ranks import Ranks

WINDOW, FEWEST = 128, 32
"""Steps whose losses a new one is held against, and how many there must be."""
DEVIATIONS = 6.0
"""What is a spike when the recipe leaves none out: once in a billion steps of normal noise."""
LEAST_SPREAD = 0.005
"""A robust deviation is at least this share of the median: losses that hardly move would make anything a spike."""


@dataclass(frozen=True)
class Attempt:
    """A step between its last backward and its update, as this rank has it; an entry a micro-batch in each list."""

    step: int
    """Steps done before it."""
    batches: Sequence[Batch]
    shares: Sequence[Mapping[str, float]]
    """The factors of their losses: `meter.prediction_shares`."""
    totals: Sequence[Tensor]
    """What backward began from, detached scalars on the device, not scaled."""


class Guard:
    """The check before every update. Its only state are the losses of the last steps, `losses`."""

    def __init__(
        self, engine: Engine, ranks: Ranks, skip_spikes: float, state: State, dumps: Path, tell: Callable[[Event], None]
    ) -> None:
        """`state` is where the run begins or goes on; `dumps` the folder for them."""
        self._engine, self._ranks, self._state, self._dumps, self._tell = engine, ranks, state, dumps, tell
        self._skip_spikes = skip_spikes
        self._recent: deque[float] = deque(state.counters.get("losses", ()), WINDOW)

    @property
    def losses(self) -> list[float]:
        """The losses of the last steps, spikes too; with them in a checkpoint, a resume decides as it would have."""
        return list(self._recent)

    def check(self, attempt: Attempt) -> bool:
        """Whether to apply the update; collective, and the one wait for the device. DivergedError: see above."""
        losses, squared = self._read(attempt)
        # NaN and infinity outlive a sum, so one rank's is everybody's.
        ranks = self._ranks.world.world_size
        sums = self._ranks.add_up(torch.tensor([fmean(losses) / ranks, squared], dtype=torch.float64))
        loss, norm = float(sums[0]), sqrt(float(sums[1]))
        if not (isfinite(loss) and isfinite(norm)):
            self._diverge(attempt, losses, loss, norm)
        limit = spike_limit(self._recent, self._skip_spikes or DEVIATIONS)
        self._recent.append(loss)
        if loss <= limit:
            return True
        skipped = self._skip_spikes > 0
        self._told(attempt, what="spike", value=loss, limit=limit, skipped=skipped)
        return not skipped

    def _read(self, attempt: Attempt) -> tuple[list[float], float]:
        """This rank's losses, and its share of the squared norm of the gradients."""
        engine = self._engine
        own = [gradient for _, gradient in engine.gradients()] if engine.config.precision != "fp16" else []
        squared = squared_norm(own, engine.device) / (1 if engine.partitioned else self._ranks.world.world_size)
        read = torch.stack([*(total.double() for total in attempt.totals), squared])
        *losses, share = read.tolist()  # device-to-host: once a step
        return losses, share

    def _diverge(self, attempt: Attempt, losses: list[float], loss: float, norm: float) -> None:
        """Tell, dump, and end the run on all ranks."""
        what, value = ("gradient", norm) if isfinite(loss) else ("loss", loss)
        self._told(attempt, what=what, value=value, limit=inf)
        name = {"loss": "the loss", "gradient": "the norm of the gradients"}[what]
        reason = f"step {attempt.step + 1}: {name} is {value}, and its update is not applied"
        try:
            folder = write_dump(self._dumps, reason, self._state, self._engine, attempt, losses, self._ranks)
        except LaunchError as error:
            way_out = f"there is no dump of the step ({error})"
        else:
            way_out = f"`nezha-ds replay {folder}` shows where it begins"
        raise DivergedError(
            f"{reason}; {way_out}. Checkpoints are from before: lower the learning rate, or mend what made it"
        )

    def _told(self, attempt: Attempt, **facts: Any) -> None:
        self._tell(Trouble(time=time.time(), step=attempt.step + 1, **facts))


def spike_limit(recent: Sequence[float], deviations: float) -> float:
    """Above this a loss is a spike: so many robust deviations above the median of the recent ones.

    A robust deviation is 1.4826 medians of the distance from the median, the standard deviation of normal noise, which
    a few spikes among the recent do not move. They stay among them: where losses rise for good, as with longer
    sequences, the median follows within half a window, and no more than that can be left out on end. Infinite while
    there are too few. The rule is the median filter's (Hampel 1974), one-sided.
    """
    if len(recent) < FEWEST:
        return inf
    middle = median(recent)
    spread = 1.4826 * median(abs(loss - middle) for loss in recent)
    return middle + deviations * max(spread, LEAST_SPREAD * abs(middle))


@torch.no_grad()
def is_sound(engine: Engine, ranks: Ranks) -> bool:
    """Whether all weights and moments are numbers, on every rank; collective, one pass and one wait for the device."""
    tensors = [
        tensor
        for piece in engine.slices
        for tensor in (piece.of(piece.owner.detach()), *engine.moments(piece).values())
        if tensor.numel()
    ]
    # The largest of each: a sum of squares would leave fp32's range before the numbers do.
    largest = torch._foreach_norm(tensors, inf) if tensors else []  # pyright: ignore[reportPrivateImportUsage]
    finite = not tensors or bool(torch.isfinite(torch.stack([norm.float() for norm in largest])).all())
    return not ranks.highest(int(not finite))
