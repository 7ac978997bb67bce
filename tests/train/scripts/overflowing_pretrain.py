"""gated_pretrain.py in which a gradient of the last rank is infinite at the steps OVERFLOWS: "2,5", or "5-" from 5 on.

Steps are counted from 0.
"""

import os
import sys

import torch

from nezha_ds.cli import main
from nezha_ds.train import loop
from nezha_ds.train.loop import Job
from nezha_ds.train.meter import LossMeter
from tests.train.scripts import gated_pretrain


def overflows(step: int, given: str) -> bool:
    first, open_end, _ = given.partition("-")
    return step >= int(first) if open_end else str(step) in given.split(",")


def train_step(job: Job, step: int, meter: LossMeter) -> None:
    """The gated one."""
    world, hooks = job.engine.world, []
    if world.rank == world.world_size - 1 and overflows(step, os.environ["OVERFLOWS"]):
        parameter = next(job.engine.module.parameters())
        hooks = [parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))]
    gated_pretrain.train_step(job, step, meter)
    for hook in hooks:
        hook.remove()


if __name__ == "__main__":
    loop.train_step = train_step
    sys.exit(main(["pretrain", *sys.argv[1:]]))
