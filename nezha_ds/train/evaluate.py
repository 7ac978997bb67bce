"""Held-out loss: the same samples with the same masks every time, summed over ranks, weighted by predictions."""

import time
from collections.abc import Callable, Iterable

import torch

from nezha_ds.batch import Batch
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.observe.events import Evaluation
from nezha_ds.train.engine import Engine
from nezha_ds.train.meter import LossMeter
from nezha_ds.train.ranks import Ranks


@torch.no_grad()
def evaluate(
    engine: Engine,
    batches: Iterable[Batch],
    objective: ObjectiveSettings,
    ranks: Ranks,
    step: int,
    stopping: Callable[[], bool],
) -> Evaluation | None:
    """Mean losses and accuracy over all ranks' batches; collective.

    None when the ranks agreed to stop in the middle: half an evaluation is no measurement.
    """
    started = time.perf_counter()
    meter = LossMeter(objective)
    engine.module.eval()
    try:
        for batch in batches:
            moved = batch.to(engine.device)
            meter.add(pretraining_losses(engine(moved), moved, objective))
            if stopping():
                return None
    finally:
        engine.module.train()
    taken = meter.take(ranks)
    return Evaluation(
        time=time.time(),
        step=step,
        split="heldout",
        loss=taken.loss,
        losses=taken.losses,
        mlm_accuracy=taken.mlm_accuracy,
        seconds=time.perf_counter() - started,
    )
