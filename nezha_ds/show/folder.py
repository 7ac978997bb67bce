"""What lies beside a journal: recipe, DeepSpeed's JSON, environment, attempts. A copied journal has none of it."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nezha_ds.observe.layout import ATTEMPTS, DS_CONFIG, ENVIRONMENT, METRICS_FILE, RECIPE

MOST_BYTES = 8 << 20
"""Of a file of settings; what is larger is none."""


@dataclass(frozen=True)
class End:
    """How one attempt went."""

    began_at: int
    exit_code: int | None
    """None: it was killed, or has not ended."""


@dataclass(frozen=True)
class Papers:
    """A run's settings, by file, and its attempts."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File name -> what it says; empty for one that is missing or unreadable."""
    attempts: list[End] = field(default_factory=list)


def journal_of(path: Path) -> Path:
    """The journal that a run folder, or a file, stands for; it need not be there yet."""
    return path if path.is_file() or path.suffix == ".jsonl" else path / METRICS_FILE


def name_of(path: Path) -> str:
    """What a run is called when it does not say so itself."""
    named = path.parent if path.name == METRICS_FILE else path
    return named.resolve().name or str(path)


def read_papers(journal: Path) -> Papers:
    """What lies beside a journal."""
    folder = journal.parent
    settings = {name: _tree(folder / name) for name in (RECIPE, DS_CONFIG, ENVIRONMENT)}
    return Papers(settings, read_attempts(folder / ATTEMPTS))


def read_attempts(path: Path) -> list[End]:
    """Every attempt in order; lines that are torn or foreign are left out."""
    ends: dict[str, End] = {}
    for line in _lines(_text(path)):
        match line:
            case {"attempt": str(name), "began_at": int(step)}:
                ends[name] = End(step, None)
            case {"attempt": str(name), "exit_code": int(code)} if name in ends:
                ends[name] = End(ends[name].began_at, code)
            case _:
                pass
    return list(ends.values())


def _lines(text: str) -> Iterable[Any]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _tree(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        tree = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""
