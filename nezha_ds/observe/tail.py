"""Follow a journal while a run writes it: what came since the last look, and never a byte twice.

A look costs one `open`, one `fstat` and the new lines (50 µs each), so a journal of a gigabyte costs as little as an
empty one once it has been read. What can happen to a file is told and survived: it is not there yet, its last line is
torn, it was cut or replaced by another (then `anew` is set and it is read from its beginning), a line is no event.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from nezha_ds.observe.events import Event
from nezha_ds.observe.journal import event_of

LOOK_BYTES = 8 << 20
"""Read in one look at most, so that whoever follows can tell how far it has come: half a second's reading."""


@dataclass(frozen=True)
class News:
    """What one look found."""

    events: list[Event] = field(default_factory=list)
    anew: bool = False
    """The file is another, or was cut: what it told before does not hold any more."""
    left: int = 0
    """Bytes that are there and were not read yet, a torn last line included."""
    more: bool = False
    """Whether another look would find something at once."""
    problem: str = ""
    """Why it cannot be read, where it cannot."""


class Tail:
    """Where one reader of a journal has come to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unreadable = 0
        """Whole lines that are no events, of this version at least."""
        self.at = 0
        """Bytes read so far: the end of a line."""
        self._file: tuple[int, int] | None = None
        self._inside = False
        """Whether the present place is inside a line that is too long to be ours."""

    def look(self, most: int = LOOK_BYTES) -> News:
        """The events of the whole lines that came since the last look, from `most` bytes at most."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                file.seek(max(0, self.at - 1))
                before = file.read(min(1, self.at))
                own = (status.st_dev, status.st_ino)
                # A byte before the present place that ends no line tells of a file that was written over.
                over = not self._inside and before not in b"\n"
                anew = self._file is not None and (own != self._file or status.st_size < self.at or over)
                if anew:
                    self.at = self.unreadable = 0
                    file.seek(0)
                self._file = own
                text = file.read(most)
        except OSError as error:
            return News(problem=error.strerror or str(error))
        whole = text.rfind(b"\n") + 1
        self._inside = not whole and len(text) == most
        if self._inside:
            whole = most
        self.at += whole
        left = status.st_size - self.at
        return News(self._parse(text[:whole]), anew, max(0, left), len(text) == most and left > 0)

    def _parse(self, text: bytes) -> list[Event]:
        lines = text.splitlines()
        events = [event for line in lines if (event := event_of(line)) is not None]
        self.unreadable += len(lines) - len(events)
        return events
