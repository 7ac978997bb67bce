"""Metric names are an interface: the reference page lists them all, and nobody names one that does not exist."""

from pathlib import Path

import pytest

from nezha_ds.observe.metrics import BY_NAME, TABLE
from nezha_ds.observe.reference import GROUPS, reference
from tests.observe.metric_names import PLACES, REPOSITORY, recorded_names, texts, unknown_names


def test_the_reference_page_is_that_of_the_table():
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == reference(), "run `make generated`"


def test_the_reference_has_every_metric_once_with_its_labels_and_values():
    page = reference()
    words = [word for _, _, group in GROUPS for word in group]
    assert sorted(words) == sorted({name.split("_")[1] for name in BY_NAME})
    for metric in TABLE:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{metric.name}` |"))
        told = [metric.help, metric.kind, metric.per, metric.absent, *metric.labels]
        assert all(text in row for text in (*told, *(value for values in metric.labels.values() for value in values)))
        assert row.count("|") == 5


def test_every_metric_that_anything_names_exists():
    found = list(texts(*PLACES))
    recorded = {name for _, text in found for name in recorded_names(text)}
    wrong = {str(path): names for path, text in found if (names := unknown_names(text, recorded))}
    assert not wrong
    named = {Path(path).parts[0] for path, _ in found}
    assert named >= {"docs", "launch", "ds_configs", "nezha_ds", "README.md", "README.zh-CN.md"}


@pytest.mark.parametrize(
    "text",
    [
        'expr: rate(nezha_train_steps_totl{run="a"}[5m])',
        '{"expr": "histogram_quantile(0.9, nezha_train_loss_bucket)"}',
        "`nezha_rank_heartbeats` tells",
        "sum by (run) (nezha_train_loss_sum)",
        "nezha_trian_loss",
        "nezha_checkpoint_save_duration_seconds_total",
        "run:nezha_train_steps:rate5m > 1",
        "- alert: X\n  expr: nezha_train_tokens_total:rate5m > 0",
        'f"nezha_lamp_{measure}"',
        '{__name__=~"nezha_optimizer_.*"}',
        "nezha_train_Loss",
        "nezha_train_loss2",
    ],
)
def test_a_name_that_does_not_exist_is_found(text):
    assert len(unknown_names(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        'rate(nezha_train_step_duration_seconds_bucket{le="1.0"}[5m]) / nezha_train_step_duration_seconds_count',
        "`nezha_train_loss`: the loss. nezha_train_loss, nezha_train_loss; nezha_train_loss.",
        "nezha_ds/observe/metrics.py, nezha_ds.observe, python -m nezha_ds.cli, `nezha_ratio`",
        "nezha_rank_* and {__name__=~'nezha_.+'} and f'nezha_lamb_{measure}'",
        "nezha-overview nezha-ds nezha.rules nezha_RUN-node0.prom",
        "my_nezha_metric, other:metric:rate5m",
    ],
)
def test_words_that_are_no_metrics_are_left_alone(text):
    assert unknown_names(text) == []


def test_a_recorded_name_exists_where_a_rule_records_it():
    rules = "- record: 'run:nezha_train_steps:rate5m'\n  expr: sum by (run) (rate(nezha_train_steps_total[5m]))"
    recorded = recorded_names(rules)
    assert recorded == {"run:nezha_train_steps:rate5m"}
    assert unknown_names(rules + "\nexpr: run:nezha_train_steps:rate5m < 1", recorded) == []
    assert unknown_names("run:nezha_train_steps:rate1h", recorded) == ["run:nezha_train_steps:rate1h"]
