"""Counting and timing between two log steps. No device is asked for anything; a `with` costs about 1 µs."""

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from nezha_ds.observe.metrics import PHASES

Clock = Callable[[], float]
STALLED = 0.1
"""Share of a step's time from which on it waits too long for data."""


@dataclass(frozen=True)
class Taken:
    """What an `Interval` gathered."""

    seconds: float
    """Wall time of the interval."""
    step_seconds: tuple[float, ...]
    phase_seconds: dict[str, float]
    """Every phase, 0 where nothing was timed."""
    stalled_steps: int
    """Steps of which the wait for data took more than `STALLED`."""
    counts: dict[str, int]


class Interval:
    """What happens from one record to the next: steps, phases, counts.

    with interval.step():
        with interval.time("data_wait"):
            batch = next(batches)
        …
        interval.count(samples=32, real_tokens=3810)
    taken = interval.take()
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._started = self._clock()
        self._steps: list[float] = []
        self._phases: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._stalled = 0
        self._counts: Counter[str] = Counter()

    @contextmanager
    def step(self) -> Generator[None]:
        """Time one step. A step that raises is not counted."""
        started, waited = self._clock(), self._phases["data_wait"]
        yield
        self._steps.append(self._clock() - started)
        self._stalled += self._phases["data_wait"] - waited > STALLED * self._steps[-1]

    @contextmanager
    def time(self, phase: str) -> Generator[None]:
        """Add the block's wall time to a phase, also when it raises."""
        assert phase in self._phases, phase
        started = self._clock()
        try:
            yield
        finally:
            self._phases[phase] += self._clock() - started

    def count(self, **amounts: int) -> None:
        """Add to counts by name."""
        self._counts.update(amounts)

    def take(self) -> Taken:
        """The interval so far; a new one begins."""
        seconds, counts = self._clock() - self._started, dict(self._counts)
        taken = Taken(seconds, tuple(self._steps), self._phases, self._stalled, counts)
        self._begin()
        return taken


class Pace:
    """Seconds a step takes, smoothed, and what remains at that pace.

    An exponential mean whose weights halve every `half_life` steps, divided by the sum of its weights, so that it is
    right from the first record on and forgets the slow first steps (compilation, allocation) within a few records.
    """

    def __init__(self, half_life: float = 50.0) -> None:
        self._half_life = half_life
        self._weighted = 0.0
        self._weight = 0.0

    def update(self, steps: int, seconds: float) -> None:
        """Take in `steps` steps that took `seconds` together, evaluations and saves included."""
        if steps:
            keep = 0.5 ** (steps / self._half_life)
            self._weighted = keep * self._weighted + (1 - keep) * seconds / steps
            self._weight = keep * self._weight + (1 - keep)

    @property
    def step_seconds(self) -> float | None:
        """The smoothed duration; None before the first step."""
        return self._weighted / self._weight if self._weight else None

    def remaining(self, steps: float) -> float | None:
        """Seconds that `steps` more steps will take."""
        pace = self.step_seconds
        return None if pace is None else pace * max(0, steps)
