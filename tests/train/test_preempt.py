"""A signal sets a flag and nothing else; the ranks of one process agree with themselves."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from nezha_ds.errors import Exit
from nezha_ds.train.preempt import STOPPING
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World
from tests.helpers import ranks

CHILD = """
import logging, os, signal, subprocess, sys, time
from types import SimpleNamespace
from nezha_ds.errors import DataError
from nezha_ds.train import preempt
assert "torch" not in sys.modules  # which starts threads and takes seconds: the flag is up before
logging.basicConfig(format="%(message)s")
flag = preempt.StopFlag()
alone = SimpleNamespace(highest=lambda value: value)

def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
        while flag.signal != number:
            time.sleep(0.001)

def forever():
    print("working", flush=True)
    while True:
        time.sleep(0.01)
"""


def child(code: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own, as the flag is one of a process and for good."""
    return subprocess.run(
        [sys.executable, "-c", CHILD + code], env=ranks.environment(), capture_output=True, text=True, timeout=600
    )


def test_a_signal_is_noted_and_nothing_else_happens():
    done = child("""
assert flag.agreed(alone) == 0
send(signal.SIGTERM)
assert flag.agreed(alone) == signal.SIGTERM
""")
    assert (done.returncode, done.stderr) == (
        0,
        "SIGTERM: stopping at the end of this step, and saving what was trained\n",
    )


def test_a_second_ctrl_c_ends_at_once_even_while_the_main_thread_is_held_up():
    done = child("""
send(signal.SIGINT)
os.kill(os.getpid(), signal.SIGINT)
while True:
    pass
""")
    assert done.returncode == 130


def test_a_scheduler_may_signal_as_often_as_it_likes():
    """Slurm sends SIGTERM after SIGUSR1, and both to every process: one warning, no exception."""
    done = child("""
send(signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
assert flag.agreed(alone)
""")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1


def test_what_it_starts_is_not_hit():
    """A compiler that gets the signal of the whole process group finishes its work."""
    done = child("""
program = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('whole')"]
assert subprocess.run(program, capture_output=True).stdout == b"whole\\n"
assert not flag.signal
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", STOPPING)
def test_work_of_which_nothing_is_lost_is_cut_short(number):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD + "flag.cut_short(forever)\nassert flag.agreed(alone)\nprint('cut', flag.signal)"],
        env=ranks.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    assert process.communicate(timeout=600)[0] == f"cut {number:d}\n"
    assert process.returncode == 0


def test_after_a_signal_it_is_not_begun_and_before_one_its_errors_are_its_own():
    done = child("""
def fail():
    raise DataError("broken text")

try:
    flag.cut_short(fail)
except DataError:
    print("raised")
flag.cut_short(lambda: print("done"))
send(signal.SIGTERM)
flag.cut_short(forever)
def noted():
    flag.signal = 0
    os.kill(os.getpid(), signal.SIGTERM)
    fail()
flag.signal = 0
flag.cut_short(noted)
assert flag.signal == signal.SIGTERM
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "raised\ndone\n"


def test_a_rank_that_meets_nobody_leaves_by_itself():
    """After a signal; it is not held up by the main thread, which waits in a library."""
    done = child("""
preempt.UNMET_SECONDS = 0.1
send(signal.SIGTERM)
while True:
    pass
""")
    assert done.returncode == Exit.STOPPED
    assert "the other ranks did not come" in done.stderr


def test_the_exit_code_is_not_that_of_an_error():
    assert os.EX_TEMPFAIL == Exit.STOPPED
    assert not {1, 130} & set(Exit)


@pytest.fixture
def alone() -> Iterator[Ranks]:
    yield Ranks(World())


def test_one_rank_needs_no_group(alone):
    assert not torch.distributed.is_initialized()
    assert alone.highest(7) == 7
    tensor = torch.tensor([1.5, 2.5])
    assert alone.add_up(tensor) is tensor
    assert tensor.tolist() == [1.5, 2.5]
    assert alone.gather({"any": "thing"}) == [{"any": "thing"}]
    alone.wait()


def test_the_flag_is_light_enough_to_be_first():
    code = (
        "import sys, nezha_ds.train.preempt, nezha_ds.train.orphan; print(*(sys.modules.keys() & {'torch', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ranks.environment(), capture_output=True, text=True)
    assert done.stdout == "\n"
    assert signal.SIGTERM in STOPPING
