"""A signal sets a flag and nothing else; the ranks of one process agree with themselves."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from nezha_ds.errors import Exit
from nezha_ds.train.preempt import STOPPING, StopFlag
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of pytest, back in place afterwards."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def alone() -> Ranks:
    return Ranks(World())


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_noted_and_nothing_else_happens(alone, caplog, number):
    flag = StopFlag()
    assert not flag.agreed(alone)
    os.kill(os.getpid(), number)
    assert flag.agreed(alone)
    assert f"{signal.Signals(number).name}: saving at the end of this step" in caplog.text


def test_a_second_ctrl_c_ends_at_once(alone):
    flag = StopFlag()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert flag.agreed(alone)


def test_a_scheduler_may_signal_as_often_as_it_likes(alone, caplog):
    """Slurm sends SIGTERM after SIGUSR1, and both to every process: one warning, no exception."""
    flag = StopFlag()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert flag.agreed(alone)
    assert len(caplog.records) == 1


def test_the_exit_code_is_not_that_of_an_error():
    assert os.EX_TEMPFAIL == Exit.STOPPED
    assert not {1, 130} & set(Exit)


def test_one_rank_needs_no_group(alone):
    assert not torch.distributed.is_initialized()
    assert alone.highest(7) == 7
    tensor = torch.tensor([1.5, 2.5])
    assert alone.add_up(tensor) is tensor
    assert tensor.tolist() == [1.5, 2.5]
    assert alone.gather({"any": "thing"}) == [{"any": "thing"}]
    alone.wait()
