"""A story is the journal's history as numbers: what a restart undid is gone, what happened stays."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.observe.events import Evaluation, Record, Save, Start
from nezha_ds.observe.journal import history
from nezha_ds.show.columns import Columns
from nezha_ds.show.state import state_of
from nezha_ds.show.story import HELDOUT, Story
from tests.observe.samples import copy, evaluation, record, save, snapshot, start, stop, trouble


def story_of(*events):
    story = Story()
    for event in events:
        story.take(event)
    return story


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans()), min_size=1, max_size=6))
def test_it_keeps_what_history_keeps(attempts):
    """Attempts that go back any number of steps and go on any number."""
    events, step = [], 0
    for back, on, evaluated in attempts:
        step = max(0, step - back)
        events.append(start(step=step))
        for _ in range(on):
            step += 1
            events.append(record(step, loss=step + len(events) / 100, real_tokens=10))
            if evaluated:
                events.append(evaluation(step, loss=step / 2))
    story, kept = story_of(*events), history(events)
    records = [event for event in kept if isinstance(event, Record)]
    assert list(story.records.steps) == [event.step for event in records]
    assert list(story.records.columns["loss"]) == [event.loss for event in records]
    assert story.records.tokens[-1] == 10 * len(records)
    evaluations = [event for event in kept if isinstance(event, Evaluation)]
    if evaluations:
        assert list(story.evaluations[HELDOUT].steps) == [event.step for event in evaluations]
        assert story.best
        assert story.best.loss == min(event.loss for event in evaluations)
    assert story.counts["undone"] == sum(isinstance(event, Record) for event in events) - len(records)
    assert len(story.starts) == len([event for event in events if isinstance(event, Start)])


def test_each_attempt_lasted_from_its_start_to_the_last_that_it_told():
    first, second = [start(time=10.0), record(1, time=20.0), save(1, time=25.0)], [start(step=1, time=90.0), stop(1)]
    story = story_of(*first, *second)
    lasted = [(one.time, until) for one, until in zip(story.starts, story.heard_until, strict=True)]
    assert lasted == [(10.0, 25.0), (90.0, second[1].time)]


def test_the_best_of_what_a_restart_left_is_the_best():
    story = story_of(
        start(), evaluation(2, loss=5.0), evaluation(4, loss=math.nan), evaluation(6, loss=3.0), start(step=4)
    )
    assert story.best
    assert (story.best.step, story.best.loss, story.best.accuracies) == (2, 5.0, {"mlm": 0.1})
    assert story_of(start(), evaluation(6), start(step=4)).best is None


def test_an_absent_number_is_no_nan():
    story = story_of(start(), record(1, loss_scale=None), record(2, loss=math.nan), record(3, loss_scale=None))
    scale, loss = story.records.curve("loss scale"), story.records.curve("loss")
    assert scale.x.tolist() == [2]
    assert loss.x.tolist() == [1, 2, 3]
    assert loss.broken.tolist() == [2]
    assert story.records.last("loss scale") is None
    assert not len(story.records.curve("no such column").x)


def test_times_leave_out_what_a_crash_threw_away():
    story = story_of(start(), record(1), record(2), record(3), start(step=1), record(2))
    assert story.records.curve("loss", "seconds").x.tolist() == [12, 24]
    assert story.records.curve("loss", "tokens").x.tolist() == [40_000, 80_000]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=400), st.integers(1, 30))
def test_thinning_keeps_ends_and_extremes_and_invents_nothing(values, buckets):
    columns = Columns()
    for step, value in enumerate(values):
        columns.add(step, 0, 0, {"y": value})
    curve = columns.curve("y")
    thin = curve.thinned(buckets)
    assert len(thin.x) <= max(4 * buckets, 1)
    assert {*zip(thin.x, thin.y, strict=True)} <= {*zip(curve.x, curve.y, strict=True)}
    assert (thin.y.min(), thin.y.max()) == (curve.y.min(), curve.y.max())
    assert (thin.x[0], thin.x[-1]) == (curve.x[0], curve.x[-1])
    assert (np.diff(thin.x) > 0).all()


# ------------------------------------------------------------------------------------------------------------ the state

BEGUN = [start(time=1000.0, target_steps=20), record(10)]  # at second 1010


@pytest.mark.parametrize(
    ("events", "now", "exit_code", "expected"),
    [
        ([], 2000, None, "no step yet"),
        (BEGUN, 1020, None, "training"),
        ([*BEGUN, snapshot(10, time=1011.0)], 1012, None, "saving"),
        ([*BEGUN, evaluation(10, time=1011.0)], 1012, None, "training"),
        (BEGUN, 1010 + 61, None, "silent"),
        ([start(time=0.0), record(1, time=100.0), record(2, time=200.0)], 690, None, "training"),
        ([start(time=0.0), record(1, time=100.0), record(2, time=200.0)], 701, None, "silent"),
        ([*BEGUN, stop(10, time=1011.0)], 1012, None, "stopping"),
        ([*BEGUN, stop(10, time=1011.0), save(10, time=1012.0)], 9999, None, "stopped"),
        ([*BEGUN, stop(10, time=1011.0), save(10, time=1012.0), start(step=10, time=1020.0)], 1021, None, "training"),
        ([*BEGUN, trouble(11, what="gradient", time=1011.0)], 1012, None, "diverged"),
        ([*BEGUN, trouble(11, time=1011.0)], 1012, None, "training"),
        ([*BEGUN, record(20), save(20, time=1030.0)], 99999, None, "done"),
        ([*BEGUN, record(20), save(20, time=1030.0), copy(20, time=1031.0)], 99999, 0, "done"),
        (BEGUN, 99999, 76, "diverged"),
        (BEGUN, 99999, 79, "hung"),
        (BEGUN, 99999, -9, "ended with exit code -9"),
    ],
)
def test_its_state(events, now, exit_code, expected):
    assert state_of(story_of(*events), now, exit_code).name == expected


def test_a_save_that_failed_is_not_the_newest():
    story = story_of(start(), save(5), save(10, ok=False))
    assert isinstance(story.save, Save)
    assert story.save.step == 5
    assert story.counts["save failed"] == 1
