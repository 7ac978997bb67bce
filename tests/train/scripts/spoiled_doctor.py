"""`nezha-ds doctor --cluster` on a rank with something wrong: what is named before the command is done to it.

The faults are those that no test can bring about for real: a device that computes wrong, a card that changes data.
"""

import os
import sys
import time
from functools import partial

import torch

from nezha_ds.cli import main
from nezha_ds.train.cluster import compute, machine, traffic
from nezha_ds.train.cluster.meeting import Meeting
from nezha_ds.world import find_world


def lose_a_share(tensor, group=None):
    tensor.zero_()
    reduce(tensor, group)


def multiply_wrong(one, other):
    product = one @ other
    product[3, 5] += 1
    return product


def multiply_slowly(one, other):
    time.sleep(1.0)
    return one @ other


def older(recipe):
    return software(recipe) | {"torch": "1.0"}


def set_clock_back():
    return clock() - 100


def leave(*_):
    os._exit(9)


reduce, measure, software, clock = traffic.all_reduce, compute.measure, machine.software, time.time
FAULTS = {
    "sum": lambda: setattr(traffic, "all_reduce", lose_a_share),
    "product": lambda: setattr(compute, "measure", partial(measure, multiply=multiply_wrong)),
    "slow": lambda: setattr(compute, "measure", partial(measure, multiply=multiply_slowly)),
    "software": lambda: setattr(machine, "software", older),
    "clock": lambda: setattr(time, "time", set_clock_back),
    "dead": lambda: setattr(compute, "measure", leave),
}


def wait_less(meeting, name, members, seconds=None):
    """For a word that never comes, whenever the wait ends; for all others as long as they take."""
    return collect(meeting, name, members, 0.1 if name == "compute" else seconds)


collect = Meeting.collect

if __name__ == "__main__":
    torch.set_num_threads(1)
    _, faults, *arguments = sys.argv
    if faults == "dead":
        Meeting.collect = wait_less
    if find_world().rank == 1:
        for fault in filter(None, faults.split(",")):
            FAULTS[fault]()
    sys.exit(main(["doctor", "--cluster", *arguments]))
