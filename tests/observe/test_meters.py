import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.observe.meters import Interval, Pace
from nezha_ds.observe.metrics import PHASES


class Clock:
    """Time that passes only when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_an_interval_splits_time_into_steps_and_phases():
    clock = Clock()
    interval = Interval(clock)
    for wait in (1.0, 3.0):
        with interval.step():
            with interval.time("data_wait"):
                clock.sleep(wait)
            with interval.time("forward"):
                clock.sleep(2.0)
        interval.count(samples=4, real_tokens=100)
    with interval.time("evaluation"):
        clock.sleep(10.0)
    taken = interval.take()
    assert taken.seconds == 18.0
    assert taken.step_seconds == (3.0, 5.0)
    assert taken.phase_seconds == {**dict.fromkeys(PHASES, 0.0), "data_wait": 4.0, "forward": 4.0, "evaluation": 10.0}
    assert taken.counts == {"samples": 8, "real_tokens": 200}


def test_taking_begins_anew_and_loses_no_time():
    clock = Clock()
    interval = Interval(clock)
    clock.sleep(1.0)
    first = interval.take()
    clock.sleep(2.0)
    second = interval.take()
    assert (first.seconds, second.seconds) == (1.0, 2.0)
    assert (second.step_seconds, second.counts) == ((), {})
    assert first.phase_seconds is not second.phase_seconds


def test_a_step_that_waits_for_data_for_more_than_a_tenth_of_its_time_is_stalled():
    clock = Clock()
    interval = Interval(clock)
    # The waits of a step's micro-batches together; what is waited outside of steps is no step's.
    for waits in ((0.5, 0.5), (0.5, 0.75), (0.0,)):
        with interval.step():
            for wait in waits:
                with interval.time("data_wait"):
                    clock.sleep(wait)
            clock.sleep(10.0 - sum(waits))
        with interval.time("data_wait"):
            clock.sleep(9.0)
    assert interval.take().stalled_steps == 1
    assert interval.take().stalled_steps == 0


def test_a_step_that_fails_is_not_a_step_but_its_phases_took_time():
    clock = Clock()
    interval = Interval(clock)
    with pytest.raises(RuntimeError), interval.step(), interval.time("backward"):
        clock.sleep(1.0)
        raise RuntimeError
    taken = interval.take()
    assert taken.step_seconds == ()
    assert taken.phase_seconds["backward"] == 1.0


def test_an_unknown_phase_is_a_fault_of_ours():
    with pytest.raises(AssertionError), Interval().time("lunch"):
        pass


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 100)), min_size=1))
def test_pace_stays_within_what_was_seen(intervals):
    pace = Pace()
    for steps, seconds in intervals:
        pace.update(steps, seconds * steps)
    seen = [seconds for _, seconds in intervals]
    assert pace.step_seconds is not None
    assert min(seen) * (1 - 1e-9) <= pace.step_seconds <= max(seen) * (1 + 1e-9)


def test_pace_is_right_at_once_and_forgets_the_slow_start():
    pace = Pace(half_life=50)
    assert pace.remaining(10) is None
    pace.update(10, 100.0)
    assert pace.remaining(10) == pytest.approx(100.0)
    for _ in range(40):
        pace.update(10, 10.0)
    # 400 steps are 8 half-lives: 9 s of slow start times 2**-8, or less.
    assert pace.step_seconds == pytest.approx(1.0, abs=9 / 256)
    assert pace.remaining(-3) == 0.0


def test_how_records_are_cut_does_not_change_the_pace():
    whole, parts = Pace(), Pace()
    whole.update(30, 60.0)
    for _ in range(3):
        parts.update(10, 20.0)
    assert whole.step_seconds == pytest.approx(parts.step_seconds)
