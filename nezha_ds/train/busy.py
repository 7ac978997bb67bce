"""How long this rank itself computes: a rank that is slow shows, and those that wait for it do not.

    with busy:                      # a micro-batch: forward and backward
        …
            reduce = busy.without(reduce)      # what waits for other ranks, wherever it is called
    busy.settle()                   # once a step, after the host has waited for the device anyway
    seconds = busy.take()

The time of forward and backward less that of what DeepSpeed does in between to add gradients up over the ranks, which
ends when the last of them has come. On a CPU that is told by the host's clock. On a GPU the host runs ahead of the
device, so events in the stream in which it computes say when it came to each of these points; nobody waits for them:
by the end of a step the guard has read from the device, and they are over. A host that is late makes its device wait,
which counts as busy, as it should. Cost: two marks a micro-batch and two a bucket of gradients, each 0.2 µs on a CPU
and an event on a GPU.
"""

import time
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class Clock(Protocol):
    """Marks, and what lies between two of them."""

    def mark(self) -> Any:
        """Now, in the order of this rank's work."""
        ...

    def seconds(self, start: Any, end: Any) -> float | None:
        """From mark to mark; None while the work has not come to the second."""
        ...


class HostClock:
    """For a device whose work the host does itself."""

    def mark(self) -> float:
        """Seconds of no particular beginning."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Always known."""
        return end - start


class CudaClock:
    """For a GPU: events in the present stream."""

    def mark(self) -> torch.cuda.Event:
        """An event that the stream comes to."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
        """None while the stream has not come to the second; asking waits for nothing."""
        return start.elapsed_time(end) / 1000 if end.query() else None


class Busy:
    """Adds up the time in `with busy` blocks, but for that in functions made by `without`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spans: list[tuple[Any, Any]] = []
        """Begin and end of each stretch of work, in order."""
        self._began: Any = None
        """Mark of the stretch under way; None outside of all."""
        self._depth = 0
        """Of functions that are left out and call each other."""
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._began = self._clock.mark()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._spans.append((self._began, self._clock.mark()))
        self._began = None

    def without(self, function: Callable[P, T]) -> Callable[P, T]:
        """The same function, whose time does not count."""

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            if self._began is None or self._depth:
                return function(*args, **kwargs)
            self._spans.append((self._began, self._clock.mark()))
            self._depth = 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth, self._began = 0, self._clock.mark()

        return wrapped

    def settle(self) -> None:
        """Turn the stretches that are over into seconds, so that few are kept."""
        for number, span in enumerate(self._spans):
            seconds = self._clock.seconds(*span)
            if seconds is None:
                del self._spans[:number]
                return
            self._seconds += seconds
        self._spans.clear()

    def take(self) -> float:
        """Seconds since the last call, of stretches that are settled."""
        taken, self._seconds = self._seconds, 0.0
        return taken
