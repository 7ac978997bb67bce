"""docker/prometheus/rules.yml: what promtool says of it, and that each alert fires when it must and only then."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from nezha_ds.observe.metrics import TABLE
from tests.monitoring import rules
from tests.monitoring.cases import CASES, Case
from tests.monitoring.healthy import HEALTHY, series

ALERTS = rules.alerts()
NAME = re.compile(r"(?<![:\w])nezha_\w+(?![:\w])")
PROMTOOL = shutil.which("promtool")
TOGETHER = 16
"""Cases in one Prometheus."""

pytestmark = pytest.mark.skipif(not PROMTOOL, reason="needs Debian's prometheus")


def promtool(*arguments: object) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules():
    printed = promtool("check", "rules", "--lint-fatal", rules.RULES)
    assert f"{len(ALERTS) + len(rules.records())} rules found" in printed


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> str:
    """What promtool prints of all cases; nothing but SUCCESS where all are as they say.

    A few Prometheuses have them all, each the run of a name of its own: so runs do not get into each other either. One
    for each case would take 25 s of CPU.
    """
    path = tmp_path_factory.mktemp("promtool") / "cases.json"
    by_length = sorted(enumerate(CASES), key=lambda numbered: numbered[1].at)
    tests = [_promtool_test(dict(by_length[at : at + TOGETHER])) for at in range(0, len(by_length), TOGETHER)]
    # Groups in the file's order, or an alert would be looked at before what is recorded for it.
    order = [group["name"] for group in rules.load()["groups"]]
    setup = {"rule_files": [str(rules.RULES)], "evaluation_interval": "1m", "group_eval_order": order}
    path.write_text(json.dumps({**setup, "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=600, check=False)
    return done.stdout + done.stderr


def test_exactly_the_named_alerts_fire(outcome):
    assert "SUCCESS" in outcome, outcome


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_case_that_fires_it_and_one_that_does_not(alert):
    own = [case for case in CASES if case.about == alert]
    fires = [any(name.partition("{")[0] == alert for name in case.fires) for case in own]
    assert any(fires)
    assert not all(fires)


def test_cases_are_about_alerts_that_there_are():
    assert {case.about for case in CASES if case.about} == ALERTS.keys()
    assert {name.partition("{")[0] for case in CASES for name in case.fires} == ALERTS.keys()


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_whom_what_and_where_to_read_on(alert):
    rule = ALERTS[alert]
    notes = rule["annotations"]
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert "$labels.run" in notes["summary"]
    assert "$labels.run" in notes["description"]
    assert "$value" in notes["description"]
    assert notes["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


def test_rules_name_metrics_that_there_are_and_cases_feed_them_all():
    known = {name for metric in TABLE for name in _names(metric)}
    used = {name for rule in _expressions() for name in NAME.findall(rule)}
    assert used <= known
    fed = {name.rpartition(" ")[2].partition("{")[0] for name in HEALTHY}
    assert used - {"nezha_train_model_flops_total", "nezha_device_peak_flops_per_second"} <= fed
    assert fed - {"up"} <= known


def test_recorded_series_are_named_by_level_metric_and_operation():
    for name in rules.records():
        assert re.fullmatch(r"run(_[a-z]+)*:nezha_[a-z_]+:[a-z]\w*", name)
    used = {name for rule in _expressions() for name in re.findall(r"run\w*:nezha_\w+:\w+", rule)}
    assert used <= rules.records().keys()


def test_every_runbook_heading_is_an_alert_and_every_alert_a_heading():
    headings = re.findall(r"^## (Nezha\w+)$", rules.RUNBOOK.read_text(), re.MULTILINE)
    assert headings == list(ALERTS)


def test_the_same_rules_for_short_runs_differ_in_times_alone():
    faster = rules.faster(60)
    assert rules.faster(1) != rules.load()  # it writes milliseconds
    for group, own in zip(faster["groups"], rules.load()["groups"], strict=True):
        for rule, as_it_is in zip(group["rules"], own["rules"], strict=True):
            assert rule.keys() == as_it_is.keys()
            assert _without_times(rule["expr"]) == _without_times(as_it_is["expr"])
    assert rules.divide("time() - x > 10 * 60 and y[5m] offset 1h > 0.5", 60) == (
        "time() - x > 10 and y[5000ms] offset 60000ms > 0.5"
    )


def test_a_limit_in_seconds_is_written_in_minutes():
    """Else `faster` would leave it as it is."""
    for alert, rule in ALERTS.items():
        if "time()" in rule["expr"] or "age_seconds" in rule["expr"]:
            assert " * 60" in rule["expr"], alert


def test_promtool_accepts_the_faster_rules(tmp_path):
    promtool("check", "rules", rules.write(rules.faster(30), tmp_path / "rules.yml"))


def _expressions() -> list[str]:
    return [*rules.records().values(), *(rule["expr"] for rule in ALERTS.values())]


def _names(metric: Any) -> list[str]:
    return [
        metric.name,
        *(f"{metric.name}_{part}" for part in ("bucket", "sum", "count") if metric.kind == "histogram"),
    ]


def _without_times(expression: str) -> str:
    """An expression in which every time is T."""
    return re.sub(r"\b\d+(ms|s|m|h)\b|\b\d+ \* 60\b|(?<=[>,] )[\d.]+(?=\)| and|$)", "T", expression)


def _promtool_test(cases: Mapping[int, Case]) -> dict[str, Any]:
    """A Prometheus with the runs of some cases; each is called by its number, and the second run of one likewise."""
    return {
        "interval": "1m",
        "input_series": [
            one
            for number, case in cases.items()
            for run, changes in ((f"r{number}", case.changes), (f"other{number}", case.other))
            if changes is not None
            for one in series(changes, case.at, run)
        ],
        "promql_expr_test": [
            {
                # The name is for whoever reads why it failed.
                "expr": f'ALERTS{{alertstate="firing",run=~"(r|other){number}"}} # {case.about}: {case.name}',
                "eval_time": f"{case.at}m",
                "exp_samples": [{"labels": _firing(name, f"r{number}"), "value": 1} for name in case.fires],
            }
            for number, case in cases.items()
        ],
    }


def _firing(name: str, run: str) -> str:
    alert, _, labels = name.partition("{")
    severity = ALERTS[alert]["labels"]["severity"]
    common = {"alertname": alert, "alertstate": "firing", "job": "nezha", "run": run, "severity": severity}
    told = ",".join(f'{label}="{value}"' for label, value in common.items())
    return f"ALERTS{{{told}{',' if labels else ''}{labels.removesuffix('}')}}}"
