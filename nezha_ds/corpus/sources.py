"""Files of any supported kind to a stream of documents.

What is in a file says `kinds`. Reading is streamed in blocks of 1 MB, one document at a time.

A fault (bad UTF-8, a cut archive, half a JSON line, a missing field …) is given to a handler: `stop` raises it, with
file and line; a handler that returns lets the reading go on with the next document that is whole. What a cut archive
or an endless line has of a document is left out. About 600 MB/s of plain text on one core.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

from nezha_ds.config import Settings
from nezha_ds.corpus.faults import Fault, OnFault, stop
from nezha_ds.corpus.kinds import Kind, Separation, find_kind, kind_of
from nezha_ds.corpus.location import Location, open_bytes
from nezha_ds.corpus.packing import BLOCK_BYTES, UNPACKING_FAULTS, open_text
from nezha_ds.corpus.wikiextractor import BLOCK_END, HALF_BLOCK_END, article, decode_entities, parse
from nezha_ds.remote import is_remote, shown

_arrow: Any = pyarrow
_parquet: Any = pyarrow.parquet

MAX_DOCUMENT_BYTES = 32 << 20
"""A longer document is a fault: it is nearly always a file whose documents are separated in another way."""

OnBytes = Callable[[int], None]


class Source(Settings):
    """A named part of a corpus: which texts, how many of the samples, and how they are read."""

    name: str
    inputs: tuple[str, ...]
    weight: int = 0
    """Its share of the samples, beside the weights of the others; 0 for what its length makes it."""
    separation: Separation = "blank-line"
    field: str = "text"

    def without_keys(self) -> "Source":
        """The same as it may be written down: URIs without access keys and parameters."""
        inputs = tuple(shown(name) if is_remote(name) else name for name in self.inputs)
        return self.model_copy(update={"inputs": inputs})


@dataclass(frozen=True)
class Document:
    """One document and where it begins: a byte of the unpacked text, or a row."""

    text: str
    path: Location
    place: int

    def not_unicode(self, reason: str) -> Fault:
        """What is wrong with a text that UTF-8 or JSON let pass."""
        return Fault(kind="not Unicode", path=self.path, place=self.place, reason=reason, in_table=_is_table(self.path))


@dataclass(frozen=True)
class Piece:
    """What is read at one go: [start, stop) of a file, in bytes or row groups; `stop` None is its end."""

    path: Location
    start: int
    stop: int | None
    size: int
    """About how many bytes of text it holds."""
    kind: Kind | None = None
    """How it is read; None when nobody has looked yet, for whoever reads it to find."""


def _uncounted(_: int) -> None:
    pass


# ------------------------------------------------------------------------------------------------------------ the kinds

_TABLE_FAULTS: tuple[type[Exception], ...] = (OSError, _arrow.ArrowException)


def _is_table(path: Location) -> bool:
    return kind_of(path) in ("parquet", "arrow")


@dataclass(frozen=True)
class Separator:
    """What stands between documents."""

    whole: re.Pattern[bytes]
    half: re.Pattern[bytes]
    """From the last line end on, what may go on to be one in the next block."""
    kept: bool = False
    """Whether it belongs to the document before it."""
    lines: re.Pattern[bytes] | None = None
    """What lines it may have; None where it has but one line end."""


# A line of nothing but spaces, tabs, carriage returns or ideographic spaces; half a character of those may stand at the
# end of a block.
_HALF_BLANK = re.compile(rb"\n(?:[ \t\r]|\xe3\x80\x80)*(?:\xe3\x80?)?")
_BLANK_LINES = Separator(
    re.compile(rb"\n(?:(?:[ \t\r]|\xe3\x80\x80)*\n)+"), _HALF_BLANK, lines=re.compile(rb"(?:[ \t\r]|\xe3\x80\x80)*")
)
_LINE_END = Separator(re.compile(rb"\n"), _HALF_BLANK)
_BLOCK_END = Separator(BLOCK_END, HALF_BLOCK_END, kept=True)
_NEVER = Separator(re.compile(rb"(?!)"), re.compile(rb"(?!)"))
_SEPARATORS: dict[Separation, Separator] = {
    "blank-line": _BLANK_LINES,
    "line": _LINE_END,
    "file": _NEVER,
    "wikiextractor": _BLOCK_END,
}


def separator_of(kind: Kind, separation: Separation) -> Separator:
    """What stands between the documents of a file that is no table."""
    if kind == "text":
        return _SEPARATORS[separation]
    return _BLOCK_END if kind == "wiki" else _LINE_END


# ---------------------------------------------------------------------------------------------------------- the reading


@dataclass(frozen=True)
class Reading:
    """How pieces are read: what separates plain text, which field or column holds the text, who hears of faults."""

    separation: Separation = "blank-line"
    field: str = "text"
    on_fault: OnFault = stop
    on_bytes: OnBytes = _uncounted
    """Called with the number of bytes (of unpacked text) just read, about every megabyte."""


def read(piece: Piece, reading: Reading) -> Iterator[Document]:
    """The documents of a piece, in order; what is only white space between separators is none."""
    kind = piece.kind or find_kind(piece.path, reading.separation)
    return _READERS[kind](replace(piece, kind=kind), reading)


def _read_text(piece: Piece, reading: Reading) -> Iterator[Document]:
    for offset, data in _split(piece, reading):
        text = _decode(piece.path, offset, data, reading)
        if text is not None:
            yield Document(text, piece.path, offset)


def _read_wiki(piece: Piece, reading: Reading) -> Iterator[Document]:
    for offset, data in _split(piece, reading):
        for block in parse(data):
            place = offset + block.place
            if block.reason:
                reading.on_fault(Fault(kind="half block", path=piece.path, place=place, reason=block.reason))
                continue
            text = _decode(piece.path, offset + block.body_place, block.body, reading) if block.body else ""
            if text is not None:
                yield Document(decode_entities(text), piece.path, place)


def _read_json(piece: Piece, reading: Reading) -> Iterator[Document]:
    of_row = _article if piece.kind == "wiki-json" else _field
    for offset, line in _split(piece, reading):
        row = _decode(piece.path, offset, line, reading)
        if row is None:
            continue
        try:
            text = of_row(json.loads(row), reading.field)
        except json.JSONDecodeError as error:
            reason = f"not JSON ({error.msg} at column {error.colno}); write one whole object a line"
            reading.on_fault(Fault(kind="not JSON", path=piece.path, place=offset, reason=reason))
        except (ValueError, RecursionError) as error:  # of too many digits, or brackets
            reading.on_fault(Fault(kind="not JSON", path=piece.path, place=offset, reason=str(error)))
        except KeyError as error:
            reading.on_fault(Fault(kind="wrong field", path=piece.path, place=offset, reason=error.args[0]))
        else:
            yield Document(text, piece.path, offset)


def _field(row: Any, field: str) -> str:
    """The text in a row; KeyError tells why there is none."""
    if not isinstance(row, dict):
        raise KeyError(f"a JSON {type(row).__name__} instead of an object; write one object a line")
    fields = cast(dict[str, Any], row)
    if field not in fields:
        raise KeyError(f"no field {field!r}; it has {', '.join(sorted(fields)) or 'none'}: choose one with --field")
    if not isinstance(fields[field], str):
        raise KeyError(f"field {field!r} is {fields[field]!r:.40}, not a string")
    return fields[field]


def _article(row: Any, field: str) -> str:
    """The title and the text in a row of WikiExtractor's; KeyError tells why there is none."""
    return decode_entities(article(_field(row, "title"), _field(row, field)))


def _decode(path: Location, offset: int, data: bytes, reading: Reading) -> str | None:
    """Strict UTF-8, without a byte-order mark; None where there is nothing, or after a fault."""
    try:
        return data.decode("utf-8-sig" if offset == 0 else "utf-8") if data.strip() else None
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte 0x{data[error.start]:02x}); convert it, for instance by `iconv -f GB18030 -t UTF-8`"
        reading.on_fault(Fault(kind="not UTF-8", path=path, place=offset + error.start, reason=reason))
        return None


_LIMIT = f"no end of the document in {MAX_DOCUMENT_BYTES >> 20} MB"
_TOO_LONG_LINE = f"{_LIMIT}; write one object a line, and divide texts that are longer"
_TOO_LONG = {
    "text": f"{_LIMIT}; separate documents by blank lines, or say --separation line if each line is one",
    "json": _TOO_LONG_LINE,
    "wiki": f"{_LIMIT}; end each article by `</doc>` on a line of its own",
    "wiki-json": _TOO_LONG_LINE,
}


def _split(piece: Piece, reading: Reading) -> Iterator[tuple[int, bytes]]:
    """What stands between separators, with its offset in the unpacked file."""
    assert piece.kind  # `read` has found it
    offset, rest, separator = piece.start, b"", separator_of(piece.kind, reading.separation)
    too_long = False
    for block in _blocks(piece, reading):
        if block is None:
            return
        data, begin = rest + block, 0
        for match in separator.whole.finditer(data):
            if match.end() == len(data):  # it may go on in the next block
                break
            if not too_long:
                yield offset + begin, data[begin : match.end() if separator.kept else match.start()]
            begin, too_long = match.end(), False
        offset, rest = offset + begin, data[begin:]
        if len(rest) > MAX_DOCUMENT_BYTES and not too_long:
            reason = _TOO_LONG[piece.kind]
            reading.on_fault(Fault(kind="too long", path=piece.path, place=offset, reason=reason))
            too_long = True
        if too_long:
            kept = half_separator(rest, separator)
            offset, rest = offset + len(rest) - len(kept), kept
    if not too_long:
        yield offset, rest


def half_separator(data: bytes, separator: Separator) -> bytes:
    """What may be a separator, or the beginning of one, at the end of the data: from a line end on, often nothing."""
    begin = data.rfind(b"\n")
    if begin < 0 or not separator.half.fullmatch(data, begin):
        return b""
    while separator.lines and (before := data.rfind(b"\n", 0, begin)) >= 0:
        if not separator.lines.fullmatch(data, before + 1, begin):
            break
        begin = before
    return data[begin:]


def _blocks(piece: Piece, reading: Reading) -> Iterator[bytes | None]:
    """The piece in blocks; None after a fault: what was begun has no end."""
    place = piece.start
    try:
        with open_text(piece.path) as file:
            if piece.start:
                file.seek(piece.start)
            while block := file.read(BLOCK_BYTES if piece.stop is None else min(BLOCK_BYTES, piece.stop - place)):
                yield block
                place += len(block)
                reading.on_bytes(len(block))
    except UNPACKING_FAULTS as error:
        reason = f"damaged or cut short within the megabyte that begins here ({error}); fetch the file again"
        reading.on_fault(Fault(kind="damaged file", path=piece.path, place=place, reason=reason))
        yield None


# ----------------------------------------------------------------------------------------------------------- the tables


def _open_table(path: Location, native: Callable[[str], Any]) -> Any:
    """A table's bytes: of a path by Arrow itself, which copies less, of a URI by way of Python."""
    return native(str(path)) if isinstance(path, Path) else open_bytes(path)


def cut_parquet(path: Location, on_fault: OnFault) -> list[Piece]:
    """A piece for each row group."""
    try:
        with _open_table(path, _arrow.OSFile) as source, _parquet.ParquetFile(source) as file:
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
    except _TABLE_FAULTS as error:
        on_fault(_damaged(path, "Parquet", error))
        return []
    return [Piece(path, group, group + 1, size) for group, size in enumerate(sizes)]


def _damaged(path: Location, kind: str, error: Exception) -> Fault:
    reason = f"is damaged or not {kind} ({error}); fetch the file again"
    return Fault(kind="damaged file", path=path, place=None, reason=reason)


def _read_parquet(piece: Piece, reading: Reading) -> Iterator[Document]:
    try:
        # Else a row group's whole column waits in memory, packed: of a file of one row group, the file.
        frugal = {"buffer_size": BLOCK_BYTES, "pre_buffer": False}
        with _open_table(piece.path, _arrow.OSFile) as source, _parquet.ParquetFile(source, **frugal) as file:
            if not _has_column(piece.path, file.schema_arrow.names, reading):
                return
            row = sum(file.metadata.row_group(group).num_rows for group in range(piece.start))
            groups = range(piece.start, file.metadata.num_row_groups if piece.stop is None else piece.stop)
            batches = file.iter_batches(batch_size=1024, row_groups=list(groups), columns=[reading.field])
            yield from _rows(piece.path, row, batches, reading)
    except _TABLE_FAULTS as error:
        reading.on_fault(_damaged(piece.path, "Parquet", error))


def _read_arrow(piece: Piece, reading: Reading) -> Iterator[Document]:
    """An Arrow file, or the stream format that the `datasets` library writes under the same suffix."""
    try:
        with _open_table(piece.path, _arrow.memory_map) as source:
            reader = _arrow_reader(source)
            if not _has_column(piece.path, reader.schema.names, reading):
                return
            columns = (batch.select([reading.field]) for batch in _arrow_batches(reader))
            yield from _rows(piece.path, 0, columns, reading)
    except _TABLE_FAULTS as error:
        reading.on_fault(_damaged(piece.path, "Arrow", error))


def _arrow_reader(source: Any) -> Any:
    try:
        return _arrow.ipc.open_file(source)
    except _arrow.ArrowInvalid:
        source.seek(0)
        return _arrow.ipc.open_stream(source)


def _arrow_batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(index) for index in range(reader.num_record_batches))
    return iter(reader)


def _rows(path: Location, row: int, batches: Iterable[Any], reading: Reading) -> Iterator[Document]:
    for batch in batches:
        for text in batch.column(0).to_pylist():
            if not isinstance(text, str):
                reason = f"column {reading.field!r} is {text!r:.40}, not a string"
                reading.on_fault(Fault(kind="wrong field", path=path, place=row, reason=reason, in_table=True))
            elif 4 * len(text) > MAX_DOCUMENT_BYTES < len(text.encode()):
                reason = f"a text of over {MAX_DOCUMENT_BYTES >> 20} MB; divide it"
                reading.on_fault(Fault(kind="too long", path=path, place=row, reason=reason, in_table=True))
            else:
                yield Document(text, path, row)
            row += 1
        reading.on_bytes(batch.nbytes)


def _has_column(path: Location, names: Sequence[str], reading: Reading) -> bool:
    if reading.field in names:
        return True
    reason = f"has no column {reading.field!r} but {', '.join(names)}: choose one with --field"
    reading.on_fault(Fault(kind="wrong field", path=path, place=None, reason=reason))
    return False


_READERS: dict[Kind, Callable[[Piece, Reading], Iterator[Document]]] = {
    "text": _read_text,
    "json": _read_json,
    "wiki": _read_wiki,
    "wiki-json": _read_json,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
