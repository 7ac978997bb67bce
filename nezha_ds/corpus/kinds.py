"""What is in a file: by its suffix, and where that leaves it open, by how its text begins.

`.jsonl` (`.ndjson`, `.json`), `.parquet` and `.arrow` say it; anything else is plain text, unless it begins as
WikiExtractor's output does, whose files have no suffix. The text kinds may be packed (`.gz`, `.xz`, `.bz2`, `.zst`).
"""

import contextlib
from typing import Literal

from nezha_ds.corpus.location import Location, pure
from nezha_ds.corpus.packing import UNPACKING_FAULTS, is_packed, open_text
from nezha_ds.corpus.wikiextractor import BEGINNING_BYTES, recognise

Separation = Literal["blank-line", "line", "file", "wikiextractor"]
"""What ends a document of plain text."""
Kind = Literal["text", "json", "parquet", "arrow", "wiki", "wiki-json"]
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""What a suffix means; any other is plain text."""


def kind_of(path: Location) -> Kind:
    """The kind of a file by its suffix, below that of packing."""
    name = pure(path)
    return KINDS.get((name.with_suffix("") if is_packed(path) else name).suffix.lower(), "text")


def find_kind(path: Location, separation: Separation) -> Kind:
    """How a file is read: as its suffix says, but text that begins as WikiExtractor's does as such.

    To be told `line` or `file` is obeyed; to be told `wikiextractor` holds for text and JSON lines, however they begin.
    """
    kind = kind_of(path)
    if kind == "json" and separation == "wikiextractor":
        return "wiki-json"
    if kind != "text" or separation in ("line", "file"):
        return kind
    return recognise(_beginning(path)) or ("wiki" if separation == "wikiextractor" else "text")


def _beginning(path: Location) -> bytes:
    """The text's first line, or what tells enough of it; of a damaged archive less, which the reading will name."""
    data = b""
    with contextlib.suppress(*UNPACKING_FAULTS), open_text(path) as file:
        while len(data) < BEGINNING_BYTES and b"\n" not in data and (block := file.read1(BEGINNING_BYTES)):
            data += block
    return data
