"""Held-out loss: the same samples with the same masks every time, summed over ranks, weighted by predictions.

Of all text, and of each source by itself where there are several: a mean can hide that one gets worse.
"""

import time
from collections.abc import Callable
from itertools import islice

import torch

from nezha_ds.data.loader import Loader
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.observe.events import Evaluation
from nezha_ds.train.engine import Engine
from nezha_ds.train.meter import LossMeter
from nezha_ds.train.ranks import Ranks


@torch.no_grad()
def evaluate(
    engine: Engine,
    batches: Loader,
    objective: ObjectiveSettings,
    ranks: Ranks,
    step: int,
    stopping: Callable[[], bool],
) -> list[Evaluation]:
    """Mean losses and accuracy over all ranks' batches, and those of each source if there are several; collective.

    Nothing when the ranks agreed to stop in the middle: half an evaluation is no measurement.
    """
    started = time.perf_counter()
    whole, by_source = LossMeter(objective), {source: LossMeter(objective) for source in batches.sections}
    engine.module.eval()
    try:
        for source, count in batches.sections.items():
            for batch in islice(batches, count):
                moved = batch.to(engine.device)
                losses = pretraining_losses(engine(moved), moved, objective)
                for meter in (whole, by_source[source]):
                    meter.add(losses)
                if stopping():
                    return []
    finally:
        engine.module.train()

    def event(split: str, meter: LossMeter) -> Evaluation:
        taken = meter.take(ranks)
        return Evaluation(
            time=time.time(),
            step=step,
            split=split,
            loss=taken.loss,
            losses=taken.losses,
            accuracies=taken.accuracies,
            predictions=taken.predictions,
            seconds=time.perf_counter() - started,
        )

    parts = [event(f"heldout/{source}", meter) for source, meter in by_source.items()] if len(by_source) > 1 else []
    return [event("heldout", whole), *parts]
