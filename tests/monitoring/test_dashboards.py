"""Every query of every dashboard, put to a real Prometheus that has scraped a real run: none is empty, and what they
show is what the run says of itself. The dashboards as files are in test_dashboard_files.py.
"""

import json
import math
import re
from collections.abc import Iterator

import pytest

from nezha_ds.observe.events import Evaluation, Record, Start
from tests.helpers.prometheus import JOB, prometheus
from tests.helpers.ranks import REPOSITORY
from tests.monitoring.grafana import DASHBOARDS, Asked, filled, named_in, panels, queries, variables
from tests.monitoring.watched import SCRAPE, STEPS, Watched, make, watched

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]

RULES = REPOSITORY / "docker" / "prometheus" / "rules.yml"
INTERVAL = f"{round(SCRAPE * 1000)}ms"
ALL = ".+"
"""What Grafana puts for All, by the variables' allValue."""
FIRING = {"groups": [{"name": "test", "rules": [{"alert": "AlwaysFiring", "expr": "nezha_run_attempt"}]}]}
"""An alert, so that what counts alerts has something to count. A healthy run has none."""
NOT_HERE = {
    "nezha_train_model_flops_utilization_ratio": "the peak of a CPU is not known",
    "nezha_device_peak_flops_per_second": "the peak of a CPU is not known",
    "nezha_rank_allocator_retries_total": "a CPU has no caching allocator",
}
"""Metrics that only a GPU has. A query of theirs must be valid; every other must have a result."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory, warm, store) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("dashboards")
    store.put("runs/ready", b"")
    run = make(folder, "s3://runs/dashboards")
    (folder / "firing.yml").write_text(json.dumps(FIRING))
    rules = [RULES, folder / "firing.yml"]
    with (
        prometheus(
            folder / "prometheus", targets=[folder / "targets"], rules=rules, interval=f"{round(SCRAPE * 1000)}ms"
        ) as server,
        watched(run, server) as scene,
    ):
        yield scene


def chosen(scene: Watched, board: str, run: str = "") -> dict[str, str]:
    """The variables as a reader has them who has just opened the dashboard, or who has chosen a run."""
    one = board == "nezha-run"
    return {"job": JOB if one else ALL, "run": run or (scene.name if one else ALL), "rank": ALL, "node": ALL}


def put(scene: Watched, asked: Asked, run: str = "") -> list[dict]:
    expr = filled(asked.expr, chosen(scene, asked.board, run), asked.interval, SCRAPE)
    return scene.at_the_end(expr) if asked.instant else scene.all_along(expr)


def numbers(found: list[dict]) -> list[float]:
    return [number for one in found for number in (one["values"] if "values" in one else [one["value"]])]


@pytest.mark.parametrize("asked", list(queries()), ids=str)
def test_it_has_numbers(scene, asked):
    """Finite ones, in series that have the labels after which they are called; none of a run that is not there."""
    found = put(scene, asked)
    if named_in(asked.expr) & set(NOT_HERE):
        assert not found or "vector(0)" in asked.expr
        return
    assert any(math.isfinite(number) for number in numbers(found)), filled(asked.expr, {}, 0, 0)
    labels = set(re.findall(r"\{\{(\w+)\}\}", asked.legend))
    # `or on () vector(0)` is a series without labels, for when there is no alert.
    assert all(labels <= set(one["metric"]) or not one["metric"] for one in found), found[:3]
    if "$run" in asked.expr:
        elsewhere = put(scene, asked, "of_nobody")
        assert not elsewhere or not any(numbers(elsewhere)), elsewhere[:3]


def test_what_only_a_gpu_has_is_not_here(scene):
    """So that the list of exceptions cannot outlive its reasons."""
    assert not set(NOT_HERE) & scene.server.metrics()


@pytest.mark.parametrize("board", [board for board in DASHBOARDS if list(variables(board))])
def test_variables_offer_what_there_is(scene, board):
    offered = {}
    for name, selector, label in variables(board):
        match = filled(selector, chosen(scene, board), 0, SCRAPE)
        span = {"start": str(scene.begin), "end": str(scene.end)}
        offered[name] = scene.server.get(f"/api/v1/label/{label}/values", **{"match[]": match}, **span)["data"]
    assert offered["job"] == [JOB] and offered["run"] == [scene.name]
    assert offered.get("rank", ["0", "1"]) == ["0", "1"]
    assert 2 <= len(offered.get("node", range(4))) <= 4  # two nodes, and their ports of the first attempt


ROWS = {"nezha-overview": 1, "nezha-cluster": 2}
"""Of the table of runs, and of that of nodes."""
TABLES = [(board, panel) for board in ROWS for panel in panels(board) if panel["type"] == "table"]


@pytest.mark.parametrize(("board", "panel"), TABLES, ids=[panel["title"] for _, panel in TABLES])
def test_each_column_of_a_table_has_a_number_for_each_row(scene, board, panel):
    """And only one, under the same labels: that is by what Grafana merges them into rows."""
    rows = []
    for target in panel["targets"]:
        found = scene.at_the_end(filled(target["expr"], chosen(scene, board), 120, SCRAPE))
        rows.append(sorted(tuple(one["metric"].items()) for one in found))
    rows = [
        row for row, target in zip(rows, panel["targets"], strict=True) if not named_in(target["expr"]) & set(NOT_HERE)
    ]
    assert all(row == rows[0] for row in rows), rows
    assert len(rows[0]) == ROWS[board]


def shown(scene: Watched, board: str, where: str) -> dict[str, float]:
    """The newest numbers of a query of a panel, by the values of their labels."""
    (asked,) = [asked for asked in queries() if (asked.board, asked.where) == (board, where)]
    found = scene.at_the_end(filled(asked.expr, chosen(scene, board), asked.interval, SCRAPE))
    return {" ".join(sorted(one["metric"].values())): one["value"] for one in found}


def test_they_show_what_the_run_says_of_itself(scene):
    events = scene.run.events()
    last = [event for event in events if isinstance(event, Record)][-1]
    heldout = [event for event in events if isinstance(event, Evaluation) and event.split == "heldout"][-1]
    assert shown(scene, "nezha-run", "Loss A") == {"": pytest.approx(last.loss)}
    assert shown(scene, "nezha-run", "Held-out loss A") == {"": pytest.approx(heldout.loss)}
    assert shown(scene, "nezha-run", "Done A") == {"": pytest.approx(last.step / STEPS)}
    assert shown(scene, "nezha-run", "Mask rate A") == {"": pytest.approx(last.masked_ratio)}
    assert shown(scene, "nezha-run", "Loss scale A") == {scene.name: last.loss_scale}
    assert shown(scene, "nezha-run", "Attempt A") == {"": 2}
    assert shown(scene, "nezha-run", "State A") == {f"{JOB} {scene.name}": 2}  # training
    assert shown(scene, "nezha-overview", "Runs that train A") == {"": 1}
    assert shown(scene, "nezha-overview", "Failed or gone A") == {"": 0}
    assert shown(scene, "nezha-cluster", "Nodes that answer A") == {"": 2}
    assert shown(scene, "nezha-cluster", "Ranks expected A") == {"": 2}
    source = shown(scene, "nezha-run", "Text of each source A")
    assert source["news"] > source["law"] > 0
    assert all(seconds > 0 for seconds in shown(scene, "nezha-run", "Time left A").values())


def test_marks_are_where_something_happened(scene):
    """By Grafana's rule: where a value is above 0, or at the times that are the values."""
    events = {
        asked.where.removeprefix("event "): put(scene, asked) for asked in queries() if asked.board == "nezha-run"
    }
    marked = {
        name: {" ".join(one["metric"].values()) for one in found if "values" in one and max(one["values"]) > 0}
        for name, found in events.items()
    }
    assert marked["Signals"] == {"SIGTERM"}
    assert marked["Alerts"] == {"AlwaysFiring"}
    assert marked["Spikes"] == marked["Failed saves"] == set()
    starts = [event.time for event in scene.run.events() if isinstance(event, Start)]
    told = sorted({value / 1000 for value in numbers(events["Starts"])})
    assert told == pytest.approx(starts, abs=0.01)
