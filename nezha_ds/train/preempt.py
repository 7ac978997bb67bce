"""Stopping as a state: a signal sets a flag, the ranks agree on it where all can save together.

Saving inside a signal handler hangs, and a check by each rank for itself leaves one rank waiting for the others in an
all-reduce. So a handler only notes the signal, and the loop asks `agreed` at the end of every step and between the
batches of an evaluation. SIGTERM comes from schedulers, SIGUSR1 from Slurm before the time limit, SIGINT from Ctrl-C; a
second Ctrl-C ends at once.
"""

import logging
import signal
from types import FrameType

from nezha_ds.train.ranks import Ranks

log = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Notes signals from its construction on; use one per process, in the main thread."""

    def __init__(self) -> None:
        self.signal: int = 0
        for number in STOPPING:
            signal.signal(number, self._note)

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was told to stop. Collective."""
        return bool(ranks.highest(self.signal))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.signal:
            log.warning("%s: saving at the end of this step, then stopping", signal.Signals(number).name)
        self.signal = number
