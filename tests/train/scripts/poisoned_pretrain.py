"""gated_pretrain.py with something wrong, as the variable POISON says: `WHAT:STEP`, several with commas between.

gradient    one number of a gradient is NaN, on the last rank; the loss is as it was
overflow    weights before the step, on all ranks, that give the same loss and gradients beyond fp32
weight      a row of weights is infinite before the step, on all ranks
loss        30 nats are added to every loss: gradients are as they were
update      the update of the step makes a weight NaN
evaluation  the losses of every evaluation from that step on are NaN
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from nezha_ds.cli import main
from nezha_ds.objectives import Losses
from nezha_ds.train import evaluate, loop
from nezha_ds.train.loop import Job
from nezha_ds.train.meter import LossMeter
from nezha_ds.train.snapshot import gather_weights
from tests.train.scripts import gated_pretrain

BY_STEP = {int(step): what for what, step in (one.split(":") for one in os.environ["POISON"].split(",") if one)}
SPOILT = "encoder.blocks.1.widen.weight"

_losses, _evaluation = loop.pretraining_losses, evaluate.pretraining_losses


def train_step(job: Job, step: int, meter: LossMeter) -> None:
    """The loop's own, after the gate; `step` steps are done."""
    if what := BY_STEP.get(step + 1):
        POISONS[what](job)
    gated_pretrain.train_step(job, step, meter)
    loop.pretraining_losses = _losses


def gradient(job: Job) -> None:
    if job.ranks.world.rank == job.ranks.world.world_size - 1:
        parameter = dict(job.engine.module.named_parameters())[SPOILT]
        parameter.register_hook(lambda found: found.index_fill(0, torch.tensor([0]), torch.nan))


def overflow(job: Job) -> None:
    weights = gather_weights(job.engine)
    # What a LayerNorm takes away the layer behind it gives back, so that gradients grow between the two.
    for name, factor in (("attention_norm.weight", 1e-25), ("attention_norm.bias", 1e-25), ("widen.weight", 1e25)):
        weights[f"encoder.blocks.0.{name}"] *= factor
    job.engine.load_weights(weights)


def weight(job: Job) -> None:
    weights = gather_weights(job.engine)
    weights[SPOILT][0] = torch.inf
    job.engine.load_weights(weights)


def loss(_job: Job) -> None:
    def raised(*arguments: Any) -> Losses:
        losses = _losses(*arguments)
        return replace(losses, total=losses.total + 30)

    loop.pretraining_losses = raised


def update(job: Job) -> None:
    step = job.engine.step

    def spoil() -> bool:
        applied = step()
        piece = job.engine.slices[0]
        piece.of(piece.owner.data)[0] = torch.nan
        return applied

    job.engine.step = spoil


def evaluation(_job: Job) -> None:
    def unsound(*arguments: Any) -> Losses:
        losses = _evaluation(*arguments)
        return replace(losses, parts=dict.fromkeys(losses.parts, torch.tensor(torch.nan)))

    evaluate.pretraining_losses = unsound


POISONS: dict[str, Callable[[Job], None]] = {
    "gradient": gradient,
    "overflow": overflow,
    "weight": weight,
    "loss": loss,
    "update": update,
    "evaluation": evaluation,
}

if __name__ == "__main__":
    loop.train_step = train_step
    sys.exit(main(["pretrain", *sys.argv[1:]]))
