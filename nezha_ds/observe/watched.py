"""What files say, read again when they change: certificates and tokens are replaced while a run goes on for weeks."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from nezha_ds.errors import NezhaError

T = TypeVar("T")
log = logging.getLogger(__name__)


class Watched(Generic[T]):
    """What `read` makes of some files. A look whether they changed costs 2 µs a file; one thread may ask."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Reads them at once; raises what `read` raises."""
        self._paths, self._read = paths, read
        self._seen = self._look()
        self._value = read()

    def get(self) -> T:
        """What they say now; what they said last, with a warning for each change, while they cannot be read."""
        # The look comes before the reading: a change between the two is seen by the next.
        if (seen := self._look()) != self._seen:
            self._seen = seen
            try:
                self._value = self._read()
            except NezhaError as error:
                log.warning("%s; until then what it said before holds", error)
        return self._value

    def _look(self) -> list[tuple[int, ...]]:
        return [_signature(path) for path in self._paths]


def _signature(path: Path) -> tuple[int, ...]:
    """Changes with the content, the owner, the rights, and with what a link leads to."""
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
