"""Packed files (`.gz`, `.xz`, `.bz2`, `.zst`) as the text that is in them, unpacked as it is read."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow  # pyright: ignore[reportMissingTypeStubs]

_arrow: Any = pyarrow

BLOCK_BYTES = 1 << 20
"""What is read at once."""


def _unpacked_zstandard(path: Path) -> IO[bytes]:
    return _arrow.input_stream(str(path), compression="zstd")


_UNPACK: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _unpacked_zstandard,
}
PACKED = tuple(_UNPACK)
UNPACKING_FAULTS: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error, lzma.LZMAError, _arrow.ArrowException)
"""What reading a damaged file may raise."""


def is_packed(path: Path) -> bool:
    """Whether the file has to be unpacked, and so cannot be entered in the middle."""
    return path.suffix.lower() in _UNPACK


def open_text(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked."""
    return _UNPACK[path.suffix.lower()](path) if is_packed(path) else path.open("rb")
