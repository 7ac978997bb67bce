"""The rules of docker/prometheus/rules.yml as data, and the same rules for runs that last seconds."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.ranks import REPOSITORY

RULES = REPOSITORY / "docker/prometheus/rules.yml"
RUNBOOK = REPOSITORY / "docs/runbook.md"

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"\b(\d+)(ms|s|m|h|d)\b")
_RANGE = re.compile(r"\[[^]]*\]|\boffset \S+")
_MINUTES = re.compile(r"\b(\d+) \* 60\b")


def load() -> dict[str, Any]:
    """The file, parsed."""
    return yaml.safe_load(RULES.read_text())


def alerts() -> dict[str, dict[str, Any]]:
    """Every alert by its name, in the file's order."""
    return {rule["alert"]: rule for rule in _rules(load()) if "alert" in rule}


def records() -> dict[str, str]:
    """Every recording rule's expression by its name."""
    return {rule["record"]: rule["expr"] for rule in _rules(load()) if "record" in rule}


def faster(factor: float) -> dict[str, Any]:
    """The rules with every time in them divided: how long an alert waits, ranges, offsets, limits in seconds.

    A limit in seconds is written as minutes `* 60`, which is how it is known from a share or a count.
    """
    rules = load()
    for rule in _rules(rules):
        rule["expr"] = divide(rule["expr"], factor)
        if "for" in rule:
            rule["for"] = _divided(rule["for"], factor)
    return rules


def divide(expression: str, factor: float) -> str:
    """An expression with its ranges, offsets and limits divided."""
    shorter = _RANGE.sub(lambda found: _divided(found[0], factor), expression)
    return _MINUTES.sub(lambda found: f"{int(found[1]) * 60 / factor:g}", shorter)


def _divided(text: str, factor: float) -> str:
    return _DURATION.sub(lambda found: f"{round(int(found[1]) * UNITS[found[2]] * 1000 / factor)}ms", text)


def _rules(loaded: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in loaded["groups"]:
        yield from group["rules"]


def write(rules: dict[str, Any], path: Path) -> Path:
    """The file that a server reads."""
    path.write_text(yaml.safe_dump(rules, sort_keys=False))
    return path
