import re

import pytest
from hypothesis import given
from pydantic import ValidationError

from nezha_ds.observe.board import Board
from nezha_ds.observe.metrics import BY_NAME, STATES, TABLE, Value
from nezha_ds.observe.pulse import Beat
from nezha_ds.observe.values import values_of, values_of_beats
from tests.observe.samples import (
    copy,
    evaluation,
    events,
    memory,
    of_the_server,
    record,
    save,
    snapshot,
    start,
    stop,
    trouble,
)

EVERY = (start(), record(), evaluation(), snapshot(), save(), copy(), stop(), trouble())
BEATS = [Beat(2, "training", 7, 5000.0, 4999.0), Beat(3, "training", 6, 4000.0, 4000.0)]


@given(events)
def test_an_event_speaks_only_of_what_the_table_lists(event):
    for value in values_of(event):
        labels = BY_NAME[value.name].labels
        assert value.labels.keys() == labels.keys()
        assert all(not known or value.labels[label] in known for label, known in labels.items())


def test_every_metric_of_the_table_is_fed_by_one_source():
    by_events, by_beats, by_the_server = (
        {value.name for event in EVERY for value in values_of(event)},
        {value.name for value in values_of_beats(BEATS, BEATS[0])},
        {value.name for value in of_the_server()},
    )
    assert by_events | by_beats | by_the_server == set(BY_NAME)
    assert not by_events & by_beats and not (by_events | by_beats) & by_the_server


def test_what_the_ranks_of_a_node_are_at():
    told = {(value.name, *value.labels.values()): value.value for value in values_of_beats(BEATS, BEATS[0])}
    assert [state for state in STATES if told["nezha_run_state", state]] == ["training"]
    assert told["nezha_train_last_step_timestamp_seconds",] == 4999.0
    assert told["nezha_rank_last_heartbeat_timestamp_seconds", "3"] == 4000.0
    assert (told["nezha_rank_step", "2"], told["nezha_rank_step", "3"]) == (7, 6)
    fresh = Beat(0, "starting", 500, 5000.0)
    assert "nezha_train_last_step_timestamp_seconds" not in {value.name for value in values_of_beats([fresh], fresh)}


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
    on_a_cpu = {value.name for value in values_of(record(rank_memory=(memory(retries=None),)))}
    assert "nezha_rank_memory_peak_bytes" in on_a_cpu and "nezha_rank_allocator_retries_total" not in on_a_cpu
    of_old = {value.name for value in values_of(record(rank_busy_seconds=(), rank_memory=(), prefetched_batches=None))}
    assert not {name for name in of_old if name.startswith("nezha_rank") or "prefetched" in name}
    failed = {value.name for value in values_of(save(ok=False, free_bytes=None))}
    assert failed == {
        "nezha_checkpoint_saves_total",
        "nezha_checkpoint_pending",
        "nezha_checkpoint_verify_failures_total",
    }


def test_what_is_there_from_the_start_is_what_the_reference_says():
    fresh = Beat(0, "starting", 0, 5000.0)
    board = Board("demo", live=lambda: values_of_beats([fresh], fresh))
    found = {family.name for family in board.collect() if family.samples}
    always = {metric.name.removesuffix("_total") for metric in TABLE if not metric.absent}
    assert found == always | {"nezha_rank_step", "nezha_rank_last_heartbeat_timestamp_seconds"}


def test_what_is_true_now_is_asked_for_at_each_reading():
    steps = iter((7, 8))
    board = Board("demo", live=lambda: [Value("nezha_rank_step", next(steps), {"rank": "0"})])
    seen = [
        sample.value for _ in range(2) for f in board.collect() if f.name == "nezha_rank_step" for sample in f.samples
    ]
    assert seen == [7, 8]


def test_derived_ratios():
    event = record(seconds=12.0, phase_seconds={"data_wait": 3.0}, step_seconds=(1.0, 3.0), real_tokens=8000)
    assert event.tokens_per_second == 2000
    assert event.data_wait_ratio == 0.25
    assert record(model_flops=6e13, peak_flops=1e14, step_seconds=(1.0, 2.0)).flops_utilization == 0.2
    idle = record(seconds=0.0, step_seconds=(), real_tokens=0)
    assert (idle.tokens_per_second, idle.data_wait_ratio, idle.flops_utilization) == (0.0, 0.0, None)


def test_the_slowest_rank_has_the_lowest_relative_performance():
    assert record(rank_busy_seconds=(2.0, 4.0, 2.5)).relative_performance == (1.0, 0.5, 0.8)
    assert record(rank_busy_seconds=(0.0, 4.0)).relative_performance == (1.0, 0.0)
    assert record(rank_busy_seconds=()).relative_performance == ()


def test_an_event_is_frozen_and_refuses_what_is_no_number():
    event = record()
    with pytest.raises(ValidationError):
        event.step = 3
    with pytest.raises(ValidationError):
        record(loss=object())
    with pytest.raises(ValidationError):
        record(lost=1)
