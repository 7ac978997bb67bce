"""What hangs is ended with every rank's stacks in the log; what is slow, suspended or finished is left alone."""

import re
import subprocess
import sys
import threading

import pytest

from nezha_ds.errors import Exit
from nezha_ds.train.watchdog import LOOKS, SLOW, Watchdog
from nezha_ds.world import World
from tests.helpers import paused, ranks, runs


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
def test_of_a_lost_collective_every_rank_tells_where_it_stands(tmp_path, embedded):
    """Rank 1 never enters the first step, whose limit is ten times half a second; rank 0 waits in a collective.

    Whoever is later may lose the other before its own limit is over, and tells where it stood in one line.
    """
    run = runs.make(tmp_path, embedded, "train.step_seconds=0.5")
    with paused.started(run, "a step", *paused.ours(2), only_rank=1) as attempt:
        attempt.wait_at_place(1)
        assert attempt.process.wait(600) == Exit.HUNG, attempt.said
        assert "rank 1 of 2 hangs: a step took longer than 5 s (train.step_seconds)" in attempt.said
        assert "in stand_still\n" in attempt.said
        assert re.search("rank 0 of 2 hangs: a step|rank 0 of 2 lost another rank in", attempt.said)
        assert " in train_step\n" in attempt.said or "loop.py" in attempt.said
        assert not attempt.living()


def test_a_step_that_hangs_ends_with_its_code_and_the_stacks_of_all_threads():
    code = """
import threading, time
from nezha_ds.train.watchdog import Watchdog
from nezha_ds.world import World

def hang():
    time.sleep(600)

def loader():
    time.sleep(600)

threading.Thread(target=loader, daemon=True).start()
watchdog = Watchdog(0.05, World())
with watchdog.watching("a step"):
    hang()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ranks.environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == Exit.HUNG
    assert "nezha-ds: rank 0 of 1 hangs: a step took longer than 0.5 s (train.step_seconds)" in done.stderr
    for function in ("hang", "loader", "_watch"):
        assert f" in {function}\n" in done.stderr


@pytest.fixture
def watchdog():
    """With a limit of which its own thread never sees a tenth; the test looks instead."""
    watchdog = Watchdog(1e6, World())
    yield watchdog
    watchdog.close()


def looks(watchdog: Watchdog, count: int) -> list[str | None]:
    return [watchdog.look() for _ in range(count)]


def warm(watchdog: Watchdog) -> None:
    with watchdog.watching("a step"):
        pass


def test_a_section_over_its_limit_is_named(watchdog):
    warm(watchdog)
    with watchdog.watching("a step"):
        assert looks(watchdog, LOOKS + 1) == [None] * LOOKS + ["a step"]
    assert looks(watchdog, 3 * LOOKS) == [None] * 3 * LOOKS


def test_many_steps_together_and_the_time_between_them_have_no_limit(watchdog):
    warm(watchdog)
    for _ in range(5):
        with watchdog.watching("a step"):
            assert not any(looks(watchdog, LOOKS))
        assert not any(looks(watchdog, 5 * LOOKS))
        # Without a look in between: the next one is another section all the same.
        warm(watchdog)


def test_each_batch_of_an_evaluation_has_a_limit_of_its_own(watchdog):
    warm(watchdog)
    with watchdog.watching("a step"):
        for _ in range(5):
            watchdog.begin("a step")
            assert not any(looks(watchdog, LOOKS))
        assert looks(watchdog, 1) == ["a step"]


def test_the_first_of_a_name_and_what_is_slow_have_ten_times_as_long(watchdog):
    with watchdog.watching("a step"):
        assert not any(looks(watchdog, SLOW * LOOKS))
        assert looks(watchdog, 1) == ["a step"]
    with watchdog.watching("a step", slow=True):
        assert not any(looks(watchdog, SLOW * LOOKS))
        assert looks(watchdog, 1) == ["a step"]


def test_without_a_limit_there_is_no_thread():
    before = threading.active_count()
    watchdog = Watchdog(0, World())
    with watchdog.watching("a step"):
        assert threading.active_count() == before
