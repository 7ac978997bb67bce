"""Finds words that look like our metrics in any text, and tells which of them do not exist."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from nezha_ds.observe.metrics import BY_NAME, TABLE

REPOSITORY = Path(__file__).parents[2]
PLACES = ("docker", "docs", "launch", "ds_configs", "nezha_ds/observe", "README.md", "README.zh-CN.md")
"""Where people and programs name metrics."""
NO_METRICS = {"nezha_ds", "nezha_ratio"}
"""The package; an option of LAMB."""
SUFFIXES = ("_bucket", "_sum", "_count")

# With what is before it: `run:nezha_train_steps:rate5m` is one word, `my_nezha_x` none of ours. nezha_RUN is a file.
_WORD = re.compile(r"(?<![\w:])(?:\w+:)*nezha_(?![A-Z])[\w:]*", re.ASCII)
_RECORDED = re.compile(r"\brecord:\s*[\"']?([\w:]+)", re.ASCII)


def known_names() -> set[str]:
    """Everything that a query can ask a run for."""
    histograms = [metric.name for metric in TABLE if metric.kind == "histogram"]
    return {*BY_NAME, *(name + suffix for name in histograms for suffix in SUFFIXES)}


def recorded_names(text: str) -> set[str]:
    """The names that the recording rules of a text define."""
    return set(_RECORDED.findall(text))


def unknown_names(text: str, recorded: Iterable[str] = ()) -> list[str]:
    """The words of a text that look like metrics, or like recorded ones, and are none.

    One that ends in `_`, as before `*` or a value that is put in, must be the beginning of a name.
    """
    known = {*known_names(), *recorded}
    words = (word.rstrip(":") for word in _WORD.findall(text))
    return [word for word in words if not (word in known or word in NO_METRICS or _begins_one(word, known))]


def _begins_one(word: str, known: set[str]) -> bool:
    return word.endswith("_") and any(name.startswith(word) for name in known)


def texts(*places: str) -> Iterator[tuple[Path, str]]:
    """Every text file in the places that exist, by its path in the repository."""
    for place in places:
        root = REPOSITORY / place
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and "__pycache__" not in path.parts and (text := _text(path)) is not None:
                yield path.relative_to(REPOSITORY), text


def _text(path: Path) -> str | None:
    """None for a picture."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
