"""Health is what the ranks are at, and nothing that a stranger may not know."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.observe.health import READY, HealthSettings, healthz, readyz
from nezha_ds.observe.metrics import STATES
from nezha_ds.observe.pulse import Beat, Pulse
from nezha_ds.world import World
from tests.observe.exporters import ask, exporting

LIMITS = HealthSettings(stall_seconds=60, start_seconds=600)
NOW = 10_000.0


def beats(*ages, state="training"):
    """Ranks that got on so many seconds ago."""
    return [Beat(rank, state, 100 + rank, NOW - age) for rank, age in enumerate(ages)]


def test_a_node_is_healthy_while_every_rank_gets_on_in_time():
    assert healthz(beats(1, 59, 60), LIMITS, NOW) == (200, "ok rank 2: training, step 102, 60 s ago")
    assert healthz(beats(1, 61, 0), LIMITS, NOW) == (
        503,
        "rank 1: training, step 101, 61 s ago, above exporter.stall_seconds 60; 1 of 3 ranks are late",
    )


def test_the_rank_that_stopped_first_is_named():
    status, text = healthz(beats(70, 75, 72), LIMITS, NOW)
    assert status == 503 and text.startswith("rank 1: ") and text.endswith("3 of 3 ranks are late")


def test_a_start_has_a_limit_of_its_own():
    assert healthz(beats(600, state="starting"), LIMITS, NOW)[0] == 200
    status, text = healthz(beats(601, state="starting"), LIMITS, NOW)
    assert status == 503 and "exporter.start_seconds 600" in text


def test_an_end_is_healthy_for_ever_and_a_failure_never():
    assert healthz(beats(9_000, state="done"), LIMITS, NOW)[0] == 200
    assert healthz([*beats(0), Beat(7, "failed", 3, NOW)], LIMITS, NOW) == (503, "rank 7 failed at step 3")


def test_a_clock_that_was_set_back_makes_nobody_late():
    assert healthz(beats(-3600), LIMITS, NOW) == (200, "ok rank 0: training, step 100, 0 s ago")


@pytest.mark.parametrize("state", STATES)
def test_ready_is_who_does_what_a_run_is_for(state):
    rows = [Beat(0, "training", 5, NOW), Beat(1, state, 5, NOW)]
    status, text = readyz(rows, NOW)
    assert (status == 200) == (state in READY)
    assert status == 200 or text.startswith(f"rank 1: {state},")


def test_before_a_rank_has_opened_nothing_is_ready_and_nothing_is_wrong():
    assert healthz([], LIMITS, NOW) == (200, "ok")
    assert readyz([], NOW) == (503, "no rank has begun")


rows = st.lists(
    st.builds(Beat, st.integers(0, 999), st.sampled_from(STATES), st.integers(0, 10**9), st.floats(0, 2 * NOW))
)


@given(rows)
def test_the_answer_is_one_line_of_ranks_states_steps_and_seconds(found):
    words = (*STATES, "ok", "rank", "ranks", "step", "above", "exporter.stall_seconds", "exporter.start_seconds")
    words += ("ago", "at", "of", "are", "late", "no", "has", "begun", "s", "failed")
    for status, text in (healthz(found, LIMITS, NOW), readyz(found, NOW)):
        assert status in (200, 503) and "\n" not in text
        assert set(re.findall(r"[a-z][\w.]*", text)) <= set(words)


@given(rows, st.floats(0, NOW))
def test_time_alone_heals_nobody(found, later):
    assert healthz(found, LIMITS, NOW)[0] <= healthz(found, LIMITS, NOW + later)[0]


def test_the_pages_tell_of_every_rank_of_the_node(tmp_path):
    """Local rank 0 goes on, local rank 1 stands still: whoever asks the node learns which."""
    worlds = [World(rank=2 + local, world_size=4, local_rank=local, local_world_size=2, node=1) for local in (0, 1)]
    with exporting(tmp_path, world=worlds[0], stall_seconds=1e-9) as exporter:
        other = Pulse.open(tmp_path, worlds[1])
        other.mark("training", 41)
        status, text = ask(exporter, "/healthz")
        other.close()
    assert status == 503
    assert re.match(r"rank (2: starting|3: training, step 41), ", text)
