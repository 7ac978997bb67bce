"""Packed files (`.gz`, `.xz`, `.bz2`, `.zst`) as the text that is in them, unpacked as it is read."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import IO, Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

from nezha_ds.corpus.location import Location, open_bytes, pure

_arrow: Any = pyarrow

BLOCK_BYTES = 1 << 20
"""What is read at once."""


def _unpacked_zstandard(file: IO[bytes]) -> Any:
    return _arrow.input_stream(file, compression="zstd")


_UNPACK: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _unpacked_zstandard,
}
PACKED = tuple(_UNPACK)
UNPACKING_FAULTS: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error, lzma.LZMAError, _arrow.ArrowException)
"""What reading a damaged file may raise."""


def is_packed(location: Location) -> bool:
    """Whether the file has to be unpacked, and so cannot be entered in the middle."""
    return pure(location).suffix.lower() in _UNPACK


@contextmanager
def open_text(location: Location) -> Generator[BufferedIOBase]:
    """The file's bytes, unpacked."""
    with open_bytes(location) as file:
        if is_packed(location):
            with _UNPACK[pure(location).suffix.lower()](file) as unpacked:
                yield unpacked
        else:
            yield file
