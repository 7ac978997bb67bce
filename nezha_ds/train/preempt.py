"""Stopping as a state: a signal sets a flag, the ranks agree on it where all can save together.

Saving inside a signal handler hangs, and a check by each rank for itself leaves one rank waiting for the others in an
all-reduce. So a signal is only noted, and the ranks ask `agreed` together: when they have met, when the text is
planned, before the first step, at the end of every step, between the batches of an evaluation, after every save.
SIGTERM comes from schedulers, SIGUSR1 from Slurm before the time limit, SIGINT from Ctrl-C; a second Ctrl-C ends at
once.

A thread waits for the signals, and all others have them blocked: they are noted at once, also while the main thread
waits for a device or for other ranks, and compilers that the run starts inherit the mask, so that a signal to the whole
process group does not break what they compile. It costs nothing while none comes.

A rank that is told to stop before the ranks have met carries the flag to the meeting, because to leave alone would let
the others wait for it. When no agreement comes within 20 s (the others may have died), it ends by itself: nothing was
trained yet. A signal in the first 0.1 s, while Python starts, ends the process as the system does.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from nezha_ds.errors import Exit, NezhaError

if TYPE_CHECKING:
    from nezha_ds.train.ranks import Ranks

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
UNMET_SECONDS = 20.0
"""How long a rank that was told to stop waits to meet the others. Launchers kill 30 s after they ask."""

log = logging.getLogger(__name__)


class _CutShortError(BaseException):
    """Ends the work in `StopFlag.cut_short`; nobody else sees it."""


class StopFlag:
    """Notes signals from its construction on; one per process, made in the main thread before there are others."""

    def __init__(self) -> None:
        self.signal: int = 0
        """The last one that came, 0 before."""
        self._interrupts = 0
        self._cutting = self._relayed = False
        self._agreed = threading.Event()
        for number in STOPPING:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def agreed(self, ranks: "Ranks") -> int:
        """The signal by which any rank was told to stop, the highest if several; 0 for none. Collective."""
        number = ranks.highest(self.signal)
        self._agreed.set()
        return number

    def cut_short(self, work: Callable[[], object]) -> None:
        """Do this rank's own work, of which a restart loses nothing; a signal ends it at once, also one of before."""
        if self.signal:
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            try:
                self._cutting = True
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
                work()
            finally:
                self._cutting = False
        except (_CutShortError, NezhaError):
            # The signal may have ended its worker processes before it ended the work here.
            if not self.signal:
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _listen(self) -> None:
        while True:
            self._note(signal.sigwait(STOPPING))
            if self._cutting:
                self._relayed = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread while work may be cut short: the signal itself, or word of it from the thread."""
        if self._relayed:
            self._relayed = False
        else:
            self._note(number)
        if self._cutting:
            self._cutting = False
            raise _CutShortError

    def _note(self, number: int) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os._exit(128 + signal.SIGINT)
        first, self.signal = not self.signal, number
        if first:
            log.warning("%s: stopping at the end of this step, and saving what was trained", _name(number))
            threading.Thread(target=self._leave_unmet, name="unmet", daemon=True).start()

    def _leave_unmet(self) -> None:
        if not self._agreed.wait(UNMET_SECONDS):
            log.warning("the other ranks did not come within %.0f s; stopping before the first step", UNMET_SECONDS)
            os._exit(Exit.STOPPED)


def _name(number: int) -> str:
    return signal.Signals(number).name
