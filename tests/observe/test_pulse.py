import logging
import subprocess
import sys
from pathlib import Path

import pytest

from nezha_ds.observe.pulse import Pulse
from nezha_ds.world import World


def rank(number, of=2):
    return World(rank=4 + number, world_size=8, local_rank=number, local_world_size=of, node=2)


@pytest.fixture
def shared(tmp_path):
    """In place of /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


@pytest.fixture
def first(tmp_path, shared):
    pulse = Pulse.open(tmp_path / "run", rank(0), shared)
    yield pulse
    pulse.close()


@pytest.fixture
def second(tmp_path, shared, first):
    pulse = Pulse.open(tmp_path / "run", rank(1), shared)
    yield pulse
    pulse.close()


def test_ranks_see_each_other_and_go_on_doing_so_without_a_name(first, second, shared):
    assert [(beat.rank, beat.state, beat.step) for beat in first.rows()] == [(4, "starting", 0), (5, "starting", 0)]
    first.hide()
    assert not list(shared.iterdir())
    second.mark("training", 7)
    assert first.rows()[1] == second.own == second.rows()[1]
    assert (second.own.state, second.own.step) == ("training", 7)


def test_only_steps_that_were_made_count_as_steps(first):
    first.mark("starting", 500)
    first.mark("training", 500)
    assert first.own.stepped is None
    first.mark("training", 501)
    made = first.own.stepped
    assert made == first.own.time
    first.mark("saving", 501)
    assert first.own.stepped == made <= first.own.time


def test_a_rank_that_came_no_further_keeps_its_time(first, second):
    died = second.own
    for step in range(1, 4):
        first.mark("training", step)
    assert first.rows()[1] == died
    assert first.own.time >= died.time


KILLED = """
import os, sys
from pathlib import Path
from nezha_ds.observe.pulse import Pulse
from nezha_ds.world import World
pulse = Pulse.open(Path(sys.argv[1]), World(5, 8, 1, 2, 2), Path(sys.argv[2]))
pulse.mark("training", 99)
os.kill(os.getpid(), 9)
"""


def killed_before_the_ranks_met(folder, shared):
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(shared)], check=False)
    assert done.returncode == -9
    (left,) = shared.iterdir()
    return left


def test_a_killed_run_leaves_nothing_that_its_restart_believes(tmp_path, shared):
    killed_before_the_ranks_met(tmp_path / "run", shared)
    pulse = Pulse.open(tmp_path / "run", rank(0), shared)
    assert [beat.rank for beat in pulse.rows()] == [4]
    pulse.close()
    assert not list(shared.iterdir())


def test_the_next_run_on_the_node_removes_what_a_killed_one_left_and_no_other(tmp_path, shared, first):
    left = killed_before_the_ranks_met(tmp_path / "other", shared) if not first.close() else None
    assert left and left.exists()
    foreign = shared / "someone-elses"
    foreign.write_text("x")
    living = Pulse.open(tmp_path / "run", rank(0), shared)
    assert not left.exists()
    another = Pulse.open(tmp_path / "third", rank(0), shared)
    beside = Pulse.open(tmp_path / "run", rank(1), shared)
    assert len(living.rows()) == len(beside.rows()) == 2 and len(another.rows()) == 1
    for pulse in (living, another, beside):
        pulse.close()
    assert list(shared.iterdir()) == [foreign]


def test_runs_in_other_folders_or_with_another_meeting_place_are_apart(tmp_path, shared, monkeypatch):
    runs = [Pulse.open(tmp_path / "one", rank(0), shared), Pulse.open(tmp_path / "two", rank(0), shared)]
    monkeypatch.setenv("MASTER_PORT", "1")
    runs.append(Pulse.open(tmp_path / "one", rank(1), shared))
    assert [len(pulse.rows()) for pulse in runs] == [1, 1, 1]
    for pulse in reversed(runs):
        pulse.close()
        pulse.close()


def handles():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_gives_the_handles_back_and_leaves_the_rows(tmp_path, shared):
    before = handles()
    pulse = Pulse.open(tmp_path / "run", rank(0), shared)
    pulse.close()
    assert pulse.own.state == "starting"
    del pulse
    assert handles() == before


def test_where_no_memory_can_be_shared_a_rank_knows_of_itself(tmp_path, shared, caplog):
    with caplog.at_level(logging.WARNING, logger="nezha_ds"):
        pulse = Pulse.open(tmp_path / "run", rank(1), shared / "missing")
    assert "no shared memory" in caplog.text
    assert [beat.rank for beat in pulse.rows()] == [5]
    pulse.close()


def test_a_link_with_the_name_of_our_file_is_not_followed(tmp_path, shared, first):
    (name,) = shared.iterdir()
    first.close()
    name.symlink_to(tmp_path / "precious")
    pulse = Pulse.open(tmp_path / "run", rank(0), shared)
    assert [beat.rank for beat in pulse.rows()] == [4]
    pulse.close()
    assert name.is_symlink() and not (tmp_path / "precious").exists()


def test_a_state_that_nobody_knows_is_a_fault_of_ours(first):
    with pytest.raises(ValueError, match="not in tuple"):
        first.mark("happy", 1)
