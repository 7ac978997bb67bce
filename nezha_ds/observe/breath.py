"""The last scrape: a run that has ended waits for it a moment, so that whoever watches learns how it ended.

Prometheus asks every 15 s or so. A run that left in between would be, for Prometheus, one that was training and is
gone: nobody could tell one that is done from one whose node burnt. So the exporter stays, with all saved and said,
until it was scraped once more, and never longer than `linger_seconds`. It stays only where somebody scrapes: a run that
nobody asks, or that was asked by hand once, ends at once.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from math import inf

from pydantic import Field

from nezha_ds.config import Settings

MISSED = 10
"""Scrapes that did not come: whoever made them is gone, and there is nothing to wait for."""

log = logging.getLogger(__name__)


class BreathSettings(Settings):
    """How long the end of a run waits for a last scrape."""

    # deepspeed and Kubernetes kill 30 s after they asked.
    linger_seconds: float = Field(default=20, ge=0)
    """At most so long the exporter stays after the end until Prometheus has seen it; 0: not at all."""


class LastBreath:
    """Knows the rhythm of the scrapes. `scraped` is called by the server's thread, `wait` by the one that ends."""

    def __init__(self, longest: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._longest, self._clock = longest, clock
        self._times: deque[float] = deque(maxlen=4)
        self._ended = inf
        self._seen = threading.Event()

    def scraped(self, began: float) -> None:
        """Somebody was told everything, as it was at a time of the clock."""
        self._times.append(began)
        if began >= self._ended:
            self._seen.set()

    def seconds(self) -> float:
        """How long to wait for the next scrape at most; 0 where none is to be expected."""
        times = list(self._times)
        if len(times) < 2:
            return 0.0
        interval = max(later - earlier for earlier, later in pairwise(times))
        return self._longest if self._clock() - times[-1] < MISSED * interval else 0.0

    def wait(self) -> None:
        """All is over: until a scrape that begins from now on, or until it does not come."""
        self._ended = self._clock()
        if seconds := self.seconds():
            log.info("waiting for a last scrape, %g s at most (exporter.linger_seconds)", seconds)
            self._seen.wait(seconds)
