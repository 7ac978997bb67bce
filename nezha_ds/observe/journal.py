"""metrics.jsonl: one JSON object a line, one line an event, appended for as long as the run lives.

A line is handed to the kernel in one write, so it outlives `kill -9`; a line torn by a power cut or a full disk is cut
off before the next one follows. Nothing is ever rewritten: after a resume from step s the lines beyond s stay, and
`history` tells which lines led to where the run is now. NaN and infinities are the strings "NaN", "Infinity" and
"-Infinity". A line costs about 5 µs and 200 bytes; that of a log step 2 kB, 100 bytes of them a rank.

A journal that cannot be written is not worth a run: the first failure is a warning, the lines lost are counted, and
training goes on. Only at the start, when nothing is lost yet, is it an error.
"""

import logging
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from nezha_ds.errors import DataError
from nezha_ds.files import make_folder, unwritable
from nezha_ds.observe.events import Event, Start
from nezha_ds.observe.layout import METRICS_FILE

log = logging.getLogger(__name__)
_MADE = re.compile(rb'"step":(\d+),"kind":"(?!trouble)')
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


class MetricsFile:
    """Appends events to a file; LaunchError when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        """Lines that could not be written."""
        make_folder(path.parent)
        try:
            self._file = path.open("ab", buffering=0)
            self._size = _whole_lines(path)
            self._file.truncate(self._size)
        except OSError as error:
            raise unwritable(path, error) from None

    def update(self, event: Event) -> None:
        """Append one line."""
        try:
            self._append(event.model_dump_json().encode() + b"\n")
        except OSError as error:
            if not self.lost:
                log.warning("%s cannot be written (%s); training goes on without it", self.path, error.strerror)
            self.lost += 1

    def close(self) -> None:
        """Close the file and tell what is missing in it."""
        self._file.close()
        if self.lost:
            log.warning("%s lacks %d lines that could not be written", self.path, self.lost)

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            # One write, unless the disk takes a part only; asking for the rest makes it say why.
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)


def read_metrics(path: Path) -> list[Event]:
    """All events of a file, in order; a torn last line is left out, because the run may be writing it.

    DataError when the file cannot be read or a line is not an event.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name the {METRICS_FILE} of a run") from None
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]


def event_of(line: bytes) -> Event | None:
    """The event of one line; None when it is none, of this version at least."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None


def history(events: Iterable[Event]) -> list[Event]:
    """The events that led to where the run is now: a start at step s undoes whatever came after s."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Start):
            kept = [earlier for earlier in kept if isinstance(earlier, Start) or earlier.step <= event.step]
        kept.append(event)
    return kept


def highest_step(path: Path) -> int:
    """The highest step that any line of a journal says was made, 0 without one; the step of a trouble was not.

    A search, as a long run's journal takes a second to parse: 0.1 s for 100 MB.
    """
    if not path.exists() or not path.stat().st_size:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
        return max((int(found[1]) for found in _MADE.finditer(lines)), default=0)


def _parse(path: Path, number: int, line: bytes) -> Event:
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].lower()
        raise DataError(f"{path}, line {number}: {reason}; was it written by this version?") from None


def _whole_lines(path: Path) -> int:
    """Bytes up to and including the last line end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        # A line is about 2 kB, 100 kB with 1,024 ranks; 1 MiB without a line end is no journal's.
        start = max(0, end - (1 << 20))
        file.seek(start)
        return start + file.read().rfind(b"\n") + 1
