"""The dashboards as Grafana would read them: their panels, and their queries with the variables that it fills in."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.ranks import REPOSITORY

FOLDER = REPOSITORY / "docker" / "grafana"
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("dashboards/*.json"))
}


@dataclass(frozen=True)
class Asked:
    """A query of a dashboard: of a panel or of an annotation."""

    board: str
    where: str
    expr: str
    legend: str
    """With `{{label}}` for the labels that it names."""
    instant: bool
    interval: float
    """The panel's shortest interval in seconds, 0 where it has none."""

    def __str__(self) -> str:
        return f"{self.board}: {self.where}"


def panels(board: str) -> list[dict[str, Any]]:
    """All panels of a dashboard that are no rows' headings."""
    return [panel for panel in DASHBOARDS[board]["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Asked]:
    """Every query of every panel and annotation."""
    for board, model in DASHBOARDS.items():
        for panel in panels(board):
            interval = _seconds(panel.get("interval", "0s"))
            for target in panel.get("targets", ()):  # a text has none
                where = f"{panel['title']} {target['refId']}"
                yield Asked(board, where, target["expr"], target["legendFormat"], target["instant"], interval)
        for one in model["annotations"]["list"]:
            step = _seconds(one["step"])
            yield Asked(board, f"event {one['name']}", one["expr"], one["titleFormat"], False, step)


def filled(expr: str, chosen: Mapping[str, str], interval: float, scrape: float) -> str:
    """An expression with the variables' values, and with `$__rate_interval` as Grafana's Prometheus source has it."""
    rate = max(interval + scrape, 4 * scrape)
    expr = expr.replace("$__rate_interval", f"{round(rate * 1000)}ms")
    return re.sub(r"\$(\w+)", lambda found: chosen[found.group(1)], expr)


def variables(board: str) -> Iterator[tuple[str, str, str]]:
    """Name, selector and label of each variable that asks Prometheus for a label's values."""
    for variable in DASHBOARDS[board]["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable
            yield variable["name"], found.group(1), found.group(2)


def named_in(expr: str) -> set[str]:
    """The metrics that an expression names."""
    return set(re.findall(r"\bnezha_\w+", expr))


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    found = re.fullmatch(r"(\d+)(ms|s|m|h)", text)
    assert found, text
    return int(found.group(1)) * units[found.group(2)]


def schema() -> Path:
    """The folder with Grafana's types: `make .venv-grafana`."""
    return REPOSITORY / ".venv-grafana" / "node_modules"
