"""Signals at every phase of a run, and the death of whatever started it: one agreed save, a true code, no orphan."""

import os
import signal

import pytest

from nezha_ds.errors import Exit
from nezha_ds.observe.events import Save, Stop
from tests.helpers import paused, ranks, runs
from tests.helpers.processes import parent_of, wait_for

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]

STOPPING = "stopping at the end of this step"


@pytest.fixture
def make(tmp_path, embedded):
    return lambda *settings: runs.make(tmp_path, embedded, *settings)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("compiling", signal.SIGINT),
        ("planning", signal.SIGUSR1),
        ("a step", signal.SIGINT),
        ("evaluating", signal.SIGUSR1),
        ("saving", signal.SIGTERM),
    ],
)
def test_at_any_phase_one_save_or_none(make, place, number):
    """The signal is sent while the run stands at the place, and the gate is opened once it was noted."""
    run = make("train.eval_every=2", "train.save_every=2")
    with paused.started(run, place) as attempt:
        attempt.wait_at_place(0)
        attempt.process.send_signal(number)
        attempt.wait_until_said(f"{signal.Signals(number).name}: {STOPPING}")
        code = attempt.process.wait(600) if place == "planning" else attempt.end()
        assert code == Exit.STOPPED, attempt.said
        assert "Traceback" not in attempt.said
        assert not attempt.living()
    trained = {"a step": 1, "evaluating": 2, "saving": 2}.get(place, 0)
    assert max(run.losses(), default=0) == trained
    assert [event.step for event in run.events() if isinstance(event, Save)] == [trained] * bool(trained)
    told = [event for event in run.events() if isinstance(event, Stop)]
    assert [(event.step, event.signal) for event in told] == [(trained, signal.Signals(number).name)] * bool(trained)


def test_it_cuts_the_preparation_of_text_short(tmp_path):
    """Which is restartable by itself. The gate stays shut: the signal alone ends it."""
    run = runs.make(tmp_path, tmp_path / "shards", 'run.prepare=["embedded"]')
    with paused.started(run, "preparing") as attempt:
        attempt.wait_at_place(0)
        attempt.process.terminate()
        assert attempt.process.wait(600) == Exit.STOPPED, attempt.said
        assert "Traceback" not in attempt.said
    assert not run.folder.exists()


def test_a_signal_to_one_rank_before_the_meeting_stops_all(make):
    run = make()
    with paused.started(run, "before the meeting", *paused.ours(2)) as attempt:
        attempt.wait_at_place(0, 1)
        os.kill(attempt.ranks()[1], signal.SIGTERM)
        attempt.wait_until_said(STOPPING)
        assert attempt.end() == Exit.STOPPED, attempt.said
        assert "Traceback" not in attempt.said
    assert not run.folder.exists()


def test_a_second_run_in_the_folder_is_refused_and_the_launcher_passes_signals_on(make):
    run = make()
    with paused.started(run, "a step", *paused.ours(2)) as attempt:
        attempt.wait_at_place(0, 1)
        holder = f"process {attempt.ranks()[0]} on "
        with paused.started(run, "a step", *paused.ours(2)) as second:
            assert second.process.wait(600) == Exit.REFUSED, second.said
            assert second.said.count(f"{run.folder} has a run in it already ({holder}") == 2
            assert "Traceback" not in second.said
        attempt.process.send_signal(signal.SIGUSR1)
        attempt.wait_until_said(f"SIGUSR1: {STOPPING}", times=2)
        assert attempt.end() == Exit.STOPPED, attempt.said
        assert "Traceback" not in attempt.said
    assert run.checkpoint(1).exists()
    assert not (run.folder / ".run.lock").exists()


def test_a_dead_rank_ends_those_of_other_nodes(make):
    """Two nodes of one rank each. Nobody tells the other node; its rank finds out in a collective."""
    run = make()
    nodes = ["--nodes", "2", "--master", f"127.0.0.1:{ranks.free_port()}", "--node-rank"]
    with (
        paused.started(run, "a step", *paused.ours(1, *nodes, "0")) as first,
        paused.started(run, "a step", *paused.ours(1, *nodes, "1")) as second,
    ):
        first.wait_at_place(0)
        second.wait_at_place(1)
        os.kill(second.ranks()[1], signal.SIGKILL)
        assert second.process.wait(600) == 128 + signal.SIGKILL, second.said
        assert first.end() == 1, first.said
        assert "rank 0 of 2 lost another rank in " in first.said
        assert "Traceback" not in first.said
        assert not first.living()


@pytest.mark.parametrize("victim", ["nezha-ds launch", "launch.py", "deepspeed"])
def test_when_the_launcher_is_killed_its_ranks_save_and_end(make, victim):
    run = make()
    launcher = paused.ours(2) if victim == "nezha-ds launch" else ranks.command(paused.SCRIPT, ranks=2)
    with paused.started(run, "a step", *launcher) as attempt:
        attempt.wait_at_place(0, 1)
        above = attempt.ranks()[0]
        above = parent_of(above) if victim != "deepspeed" else attempt.process.pid
        os.kill(above, signal.SIGKILL)
        attempt.wait_until_said(f"SIGTERM: {STOPPING}", times=2)
        attempt.go_on()
        wait_for(lambda: not attempt.living())
        code = attempt.process.wait(600)
        # The runner of deepspeed takes a launch.py that was killed for one that did well; nobody else does.
        assert code == (0 if victim == "launch.py" else -signal.SIGKILL)
        assert "Traceback" not in attempt.said
    assert run.checkpoint(1).exists()
