"""Inputs to files, and files to pieces of work of about equal size.

Plain text, JSON lines and WikiExtractor's output are cut into byte ranges at ends of documents, Parquet files into row
groups; packed and Arrow files stay whole. The cut depends on the files alone, never on who reads them, and costs a seek
a piece.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from itertools import pairwise
from pathlib import Path, PurePath, PurePosixPath

from nezha_ds.corpus.faults import Fault, OnFault, stop
from nezha_ds.corpus.globs import find_matches, find_remote_matches, has_magic
from nezha_ds.corpus.kinds import KINDS, Separation, find_kind, kind_of
from nezha_ds.corpus.location import Location, open_bytes, pure, size_of
from nezha_ds.corpus.packing import BLOCK_BYTES, PACKED, is_packed
from nezha_ds.corpus.sources import Piece, Separator, cut_parquet, half_separator, separator_of
from nezha_ds.errors import DataError
from nezha_ds.remote import RemoteFile, is_remote, list_files, shown

EMBEDDED = "embedded"
"""The input that stands for the texts that ship with the package."""
_ASSETS = Path(__file__).parent.parent / "assets"
_EMBEDDED_FILES = (_ASSETS / "sanguo.txt.xz", _ASSETS / "statutes.txt.xz")
# How much longer Chinese text is than its archive; only progress and the free-disk check depend on it.
_EXPANSION = {".gz": 2.5, ".xz": 4.0, ".bz2": 3.5, ".zst": 2.5}
_REQUESTS = 16
"""How many remote files are looked into at a time."""


def find_files(inputs: Sequence[str], on_fault: OnFault = stop) -> list[Location]:
    """The files behind each input, in order: a file itself, a folder's files of known kinds (or without a suffix) by
    path, whatever matches a glob, the shipped texts for `embedded`; the same of a URI. DataError for what does not
    exist or cannot be read, and for a folder or a glob with nothing readable; an empty file is a fault.
    """
    files: list[Location] = []
    for location in (location for name in inputs for location in _files_of(name)):
        if _has_bytes(location):
            files.append(location)
        else:
            reason = "is empty; leave it out of the inputs"
            on_fault(Fault(kind="empty file", path=location, place=None, reason=reason))
    return files


def _has_bytes(location: Location) -> bool:
    if isinstance(location, RemoteFile):
        return location.size > 0
    try:
        with location.open("rb") as file:
            return bool(file.read(1))
    except OSError as error:
        raise DataError(f"{location} cannot be read ({error.strerror}); check its path and permissions") from None


def stamp(location: Location) -> tuple[str, int, int | str]:
    """What tells that a file is the same: path or URI, size, time of change. The shipped texts have no time and no
    folder: installing the package again is no change.
    """
    if isinstance(location, RemoteFile):
        return (shown(location.uri), location.size, str(location.modified))
    status = location.stat()
    embedded = location in _EMBEDDED_FILES
    return (location.name, status.st_size, 0) if embedded else (str(location), status.st_size, status.st_mtime_ns)


def text_size(location: Location) -> int:
    """About how many bytes of text a file holds."""
    return int(size_of(location) * _EXPANSION.get(pure(location).suffix.lower(), 1.0))


def _files_of(name: str) -> Iterable[Location]:
    if name == EMBEDDED:
        return _EMBEDDED_FILES
    if is_remote(name):
        return find_remote_matches(name) if has_magic(name) else _files_behind(name)
    path = Path(name)
    if not path.exists():
        if has_magic(name):
            return find_matches(name)
        raise DataError(f"input {path} does not exist; name a file, a folder, or `{EMBEDDED}` for the shipped texts")
    if not path.is_dir():
        return (path,)
    found = sorted(file for file in path.rglob("*") if file.is_file() and _is_corpus_file(file.relative_to(path)))
    return found or _refuse_folder(name)


def _files_behind(uri: str) -> Iterable[RemoteFile]:
    """The file that a URI names, or those of a folder by path."""
    found, root = sorted(list_files(uri), key=pure), PurePosixPath(shown(uri))
    if [pure(file) for file in found] == [root]:
        return found
    return [file for file in found if _is_corpus_file(pure(file).relative_to(root))] or _refuse_folder(shown(uri))


def _refuse_folder(name: str) -> Iterable[RemoteFile]:
    raise DataError(
        f"input folder {name} has no file that ends in {', '.join(KINDS)} (or, packed, in {', '.join(PACKED)})"
    )


def _is_corpus_file(path: PurePath) -> bool:
    """Of a known kind or without a suffix, packed or not, and neither hidden nor in a hidden folder."""
    inner = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return inner.suffix.lower() in ("", *KINDS) and not any(part.startswith(".") for part in path.parts)


# ------------------------------------------------------------------------------------------------------------- the cut


def cut_all(files: Sequence[Location], size: int, separation: Separation, on_fault: OnFault = stop) -> Iterator[Piece]:
    """The pieces of all files, in order; remote ones are looked into several at a time, a round trip or two each."""

    def cut_one(file: Location) -> tuple[list[Piece], list[Fault]]:
        faults: list[Fault] = []
        return cut(file, size, separation, faults.append), faults

    with ThreadPoolExecutor(_REQUESTS) as threads:
        anywhere = any(isinstance(file, RemoteFile) for file in files)
        for pieces, faults in (threads.map if anywhere else map)(cut_one, files):
            for fault in faults:
                on_fault(fault)
            yield from pieces


def cut(path: Location, size: int, separation: Separation, on_fault: OnFault = stop) -> list[Piece]:
    """A file as consecutive pieces of about `size` bytes, each of whole documents; together they are the file.

    One that is not divided is not looked into: of many small files behind a URI each look is a round trip.
    """
    suffix, length = kind_of(path), text_size(path)
    if suffix == "parquet":
        return cut_parquet(path, on_fault)
    if suffix == "arrow" or is_packed(path) or length <= size:
        return [Piece(path, 0, None, length)]
    kind = find_kind(path, separation)
    ends = _boundaries(path, length, -(-length // size), separator_of(kind, separation))
    return [Piece(path, start, stop, stop - start, kind) for start, stop in pairwise([0, *ends, length])]


def _boundaries(path: Location, length: int, parts: int, separator: Separator) -> Iterator[int]:
    """Up to `parts - 1` ascending ends of separators, each the first after an even share of the file."""
    last = 0
    with open_bytes(path) as file:
        for part in range(1, parts):
            if (even := length * part // parts) <= last:
                continue
            last = _end_of_separator(file, even, separator)
            if last >= length:
                return
            yield last


def _end_of_separator(file: BufferedReader, start: int, separator: Separator) -> int:
    """Where the first separator after `start` ends, or the file does."""
    file.seek(start)
    data = b""
    while block := file.read1(BLOCK_BYTES):  # one request of no more
        kept = half_separator(data, separator)
        start += len(data) - len(kept)
        data = kept + block
        if match := separator.whole.search(data):
            return start + match.end()
    return start + len(data)
