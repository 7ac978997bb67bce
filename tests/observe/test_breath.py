"""The wait for a last scrape: only where there will be one, and until then."""

import threading

import pytest

from nezha_ds.observe.breath import LastBreath


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def after(*gaps: float, longest: float = 20) -> tuple[LastBreath, Clock]:
    """What was scraped once, and again after each gap."""
    clock = Clock()
    breath = LastBreath(longest, clock)
    breath.scraped(clock.now)
    for gap in gaps:
        clock.now += gap
        breath.scraped(clock.now)
    return breath, clock


def test_a_run_that_nobody_scrapes_ends_at_once():
    assert LastBreath(20).seconds() == 0
    assert after()[0].seconds() == 0
    LastBreath(600).wait()


def test_a_run_that_is_scraped_waits_as_long_as_it_may():
    assert after(15, 15)[0].seconds() == 20
    assert after(15, 15, longest=0)[0].seconds() == 0


@pytest.mark.parametrize(("gaps", "passed", "seconds"), [((5, 5), 49, 20), ((5, 5), 51, 0), ((9, 1, 1, 1), 11, 0)])
def test_whoever_missed_ten_scrapes_comes_no_more(gaps, passed, seconds):
    breath, clock = after(*gaps)
    clock.now += passed
    assert breath.seconds() == seconds


def test_the_next_scrape_ends_the_wait_and_one_that_had_begun_before_does_not():
    """The wait would last ten minutes."""
    breath, clock = after(5, longest=600)
    waiting = threading.Thread(target=breath.wait)
    before = clock.now
    clock.now += 1
    waiting.start()
    breath.scraped(before)
    waiting.join(0.1)
    assert waiting.is_alive()
    while waiting.is_alive():  # until it has begun to wait, and then once
        clock.now += 0.1
        breath.scraped(clock.now)
        waiting.join(0.01)
