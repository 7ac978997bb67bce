"""Where an input lies: a path of this machine, or a file behind a URI. Hardly anything else asks which of the two.

A remote file brings its size and time with it from the listing, so that only reading it makes requests.
"""

from io import BufferedReader
from pathlib import Path, PurePath, PurePosixPath
from typing import cast

from nezha_ds.remote import RemoteFile, open_file, shown

Location = Path | RemoteFile


def name_of(location: Location) -> str:
    """What messages call it: the path, or the URI without keys and parameters."""
    return str(location) if isinstance(location, Path) else shown(location.uri)


def pure(location: Location) -> PurePath:
    """Its name as a path, to ask for suffixes."""
    return location if isinstance(location, Path) else PurePosixPath(shown(location.uri))


def size_of(location: Location) -> int:
    """Its bytes, packed as they are."""
    return location.stat().st_size if isinstance(location, Path) else location.size


def open_bytes(location: Location) -> BufferedReader:
    """Its bytes, packed as they are, to read and to seek in. OSError of a path, DataError of a URI."""
    return location.open("rb") if isinstance(location, Path) else cast(BufferedReader, open_file(location.uri))
