"""Inputs to files, and files to pieces of work of about equal size.

Plain text, JSON lines and WikiExtractor's output are cut into byte ranges at ends of documents, Parquet files into row
groups; packed and Arrow files stay whole. The cut depends on the files alone, never on who reads them, and costs a seek
a piece.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO

from nezha_ds.corpus.faults import Fault, OnFault, stop
from nezha_ds.corpus.packing import BLOCK_BYTES, PACKED, UNPACKING_FAULTS, is_packed, open_text
from nezha_ds.corpus.sources import (
    KINDS,
    Kind,
    Piece,
    Separation,
    Separator,
    cut_parquet,
    half_separator,
    kind_of,
    separator_of,
)
from nezha_ds.corpus.wikiextractor import BEGINNING_BYTES, recognise
from nezha_ds.errors import DataError

EMBEDDED = "embedded"
"""The input that stands for the texts that ship with the package."""
_ASSETS = Path(__file__).parent.parent / "assets"
_EMBEDDED_FILES = (_ASSETS / "sanguo.txt.xz", _ASSETS / "statutes.txt.xz")
# How much longer Chinese text is than its archive; only progress and the free-disk check depend on it.
_EXPANSION = {".gz": 2.5, ".xz": 4.0, ".bz2": 3.5, ".zst": 2.5}


def find_files(inputs: Sequence[str], on_fault: OnFault = stop) -> list[Path]:
    """The files behind each input, in order: a file itself, a folder's files of known kinds (or without a suffix) by
    path, the shipped texts for `embedded`. DataError for what does not exist or cannot be read, and for a folder
    that holds nothing readable; an empty file is a fault.
    """
    files: list[Path] = []
    for path in (path for name in inputs for path in _files_of(name)):
        if _has_bytes(path):
            files.append(path)
        else:
            on_fault(Fault(kind="empty file", path=path, place=None, reason="is empty; leave it out of the inputs"))
    return files


def _has_bytes(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(file.read(1))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its path and permissions") from None


def stamp(path: Path) -> tuple[str, int, int]:
    """What tells that a file is the same: path, size, time of change. The shipped texts have no time and no folder:
    installing the package again is no change.
    """
    status = path.stat()
    return (
        (path.name, status.st_size, 0) if path in _EMBEDDED_FILES else (str(path), status.st_size, status.st_mtime_ns)
    )


def text_size(path: Path) -> int:
    """About how many bytes of text a file holds."""
    return int(path.stat().st_size * _EXPANSION.get(path.suffix.lower(), 1.0))


def _files_of(name: str) -> Iterable[Path]:
    path = Path(name)
    if name == EMBEDDED:
        return _EMBEDDED_FILES
    if not path.exists():
        raise DataError(f"input {path} does not exist; name a file, a folder, or `{EMBEDDED}` for the shipped texts")
    if not path.is_dir():
        return (path,)
    found = sorted(file for file in path.rglob("*") if file.is_file() and _is_corpus_file(file.relative_to(path)))
    if not found:
        raise DataError(
            f"input folder {path} has no file that ends in {', '.join(KINDS)} (or, packed, in {', '.join(PACKED)})"
        )
    return found


def _is_corpus_file(path: Path) -> bool:
    """Of a known kind or without a suffix, packed or not, and neither hidden nor in a hidden folder."""
    inner = path.with_suffix("") if is_packed(path) else path
    return inner.suffix.lower() in ("", *KINDS) and not any(part.startswith(".") for part in path.parts)


def find_kind(path: Path, separation: Separation) -> Kind:
    """How a file is read: as its suffix says, but text that begins as WikiExtractor's does as such.

    To be told `line` or `file` is obeyed; to be told `wikiextractor` holds for text and JSON lines, however they begin.
    """
    kind = kind_of(path)
    if kind == "json" and separation == "wikiextractor":
        return "wiki-json"
    if kind != "text" or separation in ("line", "file"):
        return kind
    return recognise(_beginning(path)) or ("wiki" if separation == "wikiextractor" else "text")


def _beginning(path: Path) -> bytes:
    """The first bytes of the text; none of a damaged archive, which the reading will name."""
    try:
        with open_text(path) as file:
            return file.read(BEGINNING_BYTES)
    except UNPACKING_FAULTS:
        return b""


def cut(path: Path, size: int, separation: Separation, on_fault: OnFault = stop) -> list[Piece]:
    """A file as consecutive pieces of about `size` bytes, each of whole documents; together they are the file."""
    kind = find_kind(path, separation)
    if kind == "parquet":
        return cut_parquet(path, on_fault)
    length = text_size(path)
    if kind == "arrow" or is_packed(path):
        return [Piece(path, 0, None, length, kind)]
    ends = _boundaries(path, length, -(-length // size), separator_of(kind, separation))
    return [Piece(path, start, stop, stop - start, kind) for start, stop in pairwise([0, *ends, length])]


def _boundaries(path: Path, length: int, parts: int, separator: Separator) -> Iterator[int]:
    """Up to `parts - 1` ascending ends of separators, each the first after an even share of the file."""
    last = 0
    with path.open("rb") as file:
        for part in range(1, parts):
            if (even := length * part // parts) <= last:
                continue
            last = _end_of_separator(file, even, separator)
            if last >= length:
                return
            yield last


def _end_of_separator(file: IO[bytes], start: int, separator: Separator) -> int:
    """Where the first separator after `start` ends, or the file does."""
    file.seek(start)
    data = b""
    while block := file.read(BLOCK_BYTES):
        kept = half_separator(data, separator)
        start += len(data) - len(kept)
        data = kept + block
        if match := separator.whole.search(data):
            return start + match.end()
    return start + len(data)
