import re

import pytest
from hypothesis import given
from pydantic import ValidationError

from nezha_ds.observe.metrics import BY_NAME, TABLE, values_of
from tests.observe.samples import copy, evaluation, events, record, save, snapshot, start, stop, trouble

EVERY = (start(), record(), evaluation(), snapshot(), save(), copy(), stop(), trouble())


@given(events)
def test_an_event_speaks_only_of_what_the_table_lists(event):
    for value in values_of(event):
        labels = BY_NAME[value.name].labels
        assert value.labels.keys() == labels.keys()
        assert all(not known or value.labels[label] in known for label, known in labels.items())


def test_every_metric_of_the_table_is_fed_by_some_event():
    fed = {value.name for event in EVERY for value in values_of(event)}
    assert fed == set(BY_NAME)


def test_names_follow_the_conventions():
    assert len(BY_NAME) == len(TABLE)
    for metric in TABLE:
        assert re.fullmatch(r"nezha(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.name.endswith("_info") == (metric.kind == "info"), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert "run" not in metric.labels and "le" not in metric.labels
        # What is timed says so; a moment is a gauge.
        assert ("duration" in metric.name or "timestamp" in metric.name) <= (metric.unit == "seconds"), metric.name


def test_units_come_from_the_name():
    assert BY_NAME["nezha_train_phase_seconds_total"].unit == "seconds"
    assert BY_NAME["nezha_data_masked_ratio"].unit == "ratio"
    assert BY_NAME["nezha_train_tokens_total"].unit == ""


def test_what_does_not_exist_is_not_reported_as_zero():
    names = {value.name for value in values_of(record(grad_norm=None, loss_scale=None))}
    assert not names & {"nezha_train_grad_norm", "nezha_train_loss_scale"}
    unknown = {value.name for value in values_of(record(peak_flops=None))}
    assert "nezha_train_model_flops_utilization_ratio" not in unknown
    failed = {value.name for value in values_of(save(ok=False, free_bytes=None))}
    assert failed == {
        "nezha_checkpoint_saves_total",
        "nezha_checkpoint_pending",
        "nezha_checkpoint_verify_failures_total",
    }


def test_derived_ratios():
    event = record(seconds=12.0, phase_seconds={"data_wait": 3.0}, step_seconds=(1.0, 3.0), real_tokens=8000)
    assert event.tokens_per_second == 2000
    assert event.data_wait_ratio == 0.25
    assert record(model_flops=6e13, peak_flops=1e14, step_seconds=(1.0, 2.0)).flops_utilization == 0.2
    idle = record(seconds=0.0, step_seconds=(), real_tokens=0)
    assert (idle.tokens_per_second, idle.data_wait_ratio, idle.flops_utilization) == (0.0, 0.0, None)


def test_an_event_is_frozen_and_refuses_what_is_no_number():
    event = record()
    with pytest.raises(ValidationError):
        event.step = 3
    with pytest.raises(ValidationError):
        record(loss=object())
    with pytest.raises(ValidationError):
        record(lost=1)
