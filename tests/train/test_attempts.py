"""Attempts that come no further are counted, others are not; one run at a time is in a folder."""

import os
import signal
from pathlib import Path

import pytest

from nezha_ds.errors import ConfigError, DivergedError, Exit, LaunchError, NezhaError, NoProgressError
from nezha_ds.train.attempts import ATTEMPTS, LOCK, Attempt, attempt, idle_attempts
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World

ALONE = Ranks(World())


def enter(folder: Path, limit: int = 3, error: BaseException | None = None, code: int = 0) -> Attempt:
    """One attempt, to the end that it is to have."""
    with attempt(folder, limit, ALONE) as own:
        if error:
            raise error
        own.exit_code = code
    return own


def killed(folder: Path) -> None:
    """An attempt of a process that is killed in the middle."""
    if not (child := os.fork()):
        with attempt(folder, 3, ALONE):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def save(folder: Path, step: int) -> None:
    (folder / "checkpoints" / f"step-{step:08}").mkdir(parents=True)


def test_three_that_came_no_further_end_the_next(tmp_path):
    save(tmp_path, 100)
    killed(tmp_path)
    with pytest.raises(DivergedError):
        enter(tmp_path, error=DivergedError("NaN"))
    killed(tmp_path)
    with pytest.raises(NoProgressError) as refused:
        enter(tmp_path)
    assert refused.value.exit_code == Exit.NO_PROGRESS
    assert str(refused.value).startswith(
        f"the last 3 attempts at {tmp_path} ended before they saved anything beyond step 100; "
    )
    assert f"delete {tmp_path / ATTEMPTS} or raise train.max_idle_restarts (now 3) to go on" in str(refused.value)
    # Both ways out that the message names, and that it is not the last word: a checkpoint from elsewhere.
    enter(tmp_path, limit=4, code=1)
    enter(tmp_path, limit=0, code=1)
    save(tmp_path, 101)
    enter(tmp_path)
    (tmp_path / ATTEMPTS).unlink()
    enter(tmp_path)


def test_progress_begins_the_count_anew(tmp_path):
    for step in (10, 20, 30, 40):
        killed(tmp_path)
        killed(tmp_path)
        save(tmp_path, step)
    enter(tmp_path)


@pytest.mark.parametrize("error", [ConfigError("no"), LaunchError("the disk is full"), None])
def test_stops_and_refusals_are_innocent(tmp_path, error):
    """A run that is preempted in start-up, or that a full disk refuses, may be so for ever."""
    for _ in range(5):
        try:
            enter(tmp_path, error=error, code=Exit.STOPPED)
        except NezhaError as raised:
            assert raised is error
    killed(tmp_path)
    killed(tmp_path)
    enter(tmp_path, code=Exit.STOPPED)
    killed(tmp_path)
    with pytest.raises(NoProgressError):
        enter(tmp_path)


def test_a_torn_line_takes_no_other_with_it(tmp_path):
    for _ in range(3):
        killed(tmp_path)
        with (tmp_path / ATTEMPTS).open("ab") as file:
            file.write(b'{"attempt": "torn in the mid')
    with pytest.raises(NoProgressError):
        enter(tmp_path)


def test_it_counts_what_began_at_the_step_or_beyond():
    def lines(*steps: int):
        return [{"attempt": str(number), "began_at": step} for number, step in enumerate(steps)]

    assert idle_attempts([], 0) == 0
    assert idle_attempts(lines(0, 5, 5), 5) == 2
    assert idle_attempts(lines(0, 5, 5), 9) == 0
    # A checkpoint was damaged, and the run went back to an older one: that is no progress.
    assert idle_attempts(lines(5, 9, 9), 5) == 3


def test_a_second_run_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    with attempt(tmp_path, 3, ALONE):
        with pytest.raises(LaunchError, match=rf"has a run in it already \(process {os.getpid()} on "):
            enter(tmp_path)
        assert len((tmp_path / ATTEMPTS).read_text().split()) > 0
    assert not (tmp_path / LOCK).exists()
    killed(tmp_path)
    assert (tmp_path / LOCK).exists()
    enter(tmp_path)


def test_a_folder_with_braces_in_its_name_is_named(tmp_path):
    folder = tmp_path / "run-{SEED}"
    with attempt(folder, 3, ALONE), pytest.raises(LaunchError, match=r"run-\{SEED\} has a run"):
        enter(folder)


def test_attempts_are_counted_those_that_were_refused_are_not(tmp_path):
    killed(tmp_path)
    assert enter(tmp_path).number == 2
    killed(tmp_path)
    killed(tmp_path)
    with pytest.raises(NoProgressError):
        enter(tmp_path, limit=2)
    assert enter(tmp_path, limit=0).number == 5
