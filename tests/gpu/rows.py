"""rows.jsonl: what was found, one JSON object a line, written as it comes.

`kind` is `environment`, `tests`, `step`, `limit` or `tiles`. The last three say of what they are (`cases.Key`) and
either what was measured or an `error`.
"""

import json
from pathlib import Path
from typing import Any

from tests.gpu.cases import Key

Row = dict[str, Any]


def append(path: Path, row: Row) -> None:
    """One line, handed to the kernel at once: a cut at the end leaves whatever was found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """The rows of a file, without a torn last line; none where there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def key_of(row: Row) -> Key | None:
    """What a row is of; None: it is no measurement."""
    if row["kind"] not in ("step", "limit", "tiles"):
        return None
    return row["kind"], row["size"], row["length"], row["dtype"], row["compiled"], row["side"]


def measured(rows: list[Row]) -> set[Key]:
    """What need not be measured again."""
    return {key for row in rows if "error" not in row and (key := key_of(row)) is not None}


def last_measured(rows: list[Row]) -> dict[Key, Row]:
    """Each thing's last row without an error, or its last error."""
    found: dict[Key, Row] = {}
    for row in rows:
        key = key_of(row)
        if key is not None and ("error" not in row or "error" in found.get(key, row)):
            found[key] = row
    return found
