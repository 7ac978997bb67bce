"""Gradients and dropped steps in every kind of engine that DeepSpeed builds; arguments: a folder for the results.

For each kind, in results.json: the norm of the gradients that `Engine.gradients` gives, over ranks, beside DeepSpeed's
own; and the largest difference of any weight and any moment between an engine that dropped a step and one that never
had it, after the same updates.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.engine import Engine, join_ranks, leave_ranks
from nezha_ds.train.gradients import squared_norm
from nezha_ds.train.snapshot import gather_weights
from nezha_ds.world import find_world
from tests.train.scripts.lamb_under_zero import GLOBAL_BATCH, MICRO_BATCH, batch, model

BF16, FP32_SUMS = {"bf16": {"enabled": True}}, {"data_types": {"grad_accum_dtype": "fp32"}}
KINDS: dict[str, dict[str, Any]] = {
    "fp32, stage 0": {"zero_optimization": {"stage": 0}},
    "fp32, stage 1": {"zero_optimization": {"stage": 1}},
    "fp32, stage 2": {"zero_optimization": {"stage": 2}},
    "bf16, stage 0": {**BF16, "zero_optimization": {"stage": 0}},
    "bf16, stage 1": {**BF16, "zero_optimization": {"stage": 1}},
    "bf16, stage 1, fp32 sums": {**BF16, **FP32_SUMS, "zero_optimization": {"stage": 1}},
    "bf16, stage 2, fp32 sums": {**BF16, **FP32_SUMS, "zero_optimization": {"stage": 2}},
}
DROPPED = 1


def engine_of(kind: str, folder: Path) -> Engine:
    world = find_world()
    path = folder / f"{kind}.json"
    if world.is_main:
        tree = {
            "train_batch_size": GLOBAL_BATCH,
            "train_micro_batch_size_per_gpu": MICRO_BATCH,
            "gradient_clipping": 1.0,
            "optimizer": {"type": "Lamb", "params": {"lr": 0.01}},
            "scheduler": {"type": "WarmupPolynomialLR", "params": {"warmup_steps": 3}},
            **KINDS[kind],
        }
        path.write_text(json.dumps(tree))
    dist.barrier()
    return Engine(model(), load_ds_config(path, world.world_size), 10, world)


def accumulate(engine: Engine, step: int) -> None:
    """Forward and backward of a step's micro-batches of this rank."""
    share = GLOBAL_BATCH // engine.world.world_size
    for first in range(engine.world.rank * share, (engine.world.rank + 1) * share, MICRO_BATCH):
        micro = batch(step, first, MICRO_BATCH)
        engine.backward(pretraining_losses(engine(micro), micro, ObjectiveSettings()).total)


def norm_over_ranks(engine: Engine) -> float:
    squared = squared_norm([gradient for _, gradient in engine.gradients()], engine.device)
    if engine.partitioned:
        dist.all_reduce(squared)
    return float(squared.sqrt())


def state_of(engine: Engine) -> dict[str, Tensor]:
    moments = {
        f"{key}/{piece.name}@{piece.offset}": tensor.clone()
        for piece in engine.slices
        for key, tensor in engine.moments(piece).items()
    }
    return gather_weights(engine) | moments


def measure(kind: str, folder: Path) -> dict[str, Any]:
    through, without = engine_of(kind, folder), engine_of(kind, folder)
    norms = []
    for step in range(4):
        accumulate(through, step)
        if step == DROPPED:
            through.drop_step()
            continue
        own = norm_over_ranks(through)
        through.step()
        norms.append((own, through.grad_norm))
        accumulate(without, step)
        without.step()
    one, other = state_of(through), state_of(without)
    worst = torch.stack([(one[name] - other[name]).abs().max() for name in one]).max()
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return {
        "norms": norms,
        "difference": float(worst),
        "counters": [through.counters(), without.counters()],
        "global_steps": [through._engine.global_steps, without._engine.global_steps],
    }


def main() -> None:
    folder = Path(sys.argv[-1])
    join_ranks(find_world())
    results = {kind: measure(kind, folder) for kind in KINDS}
    if find_world().is_main:
        (folder / "results.json").write_text(json.dumps(results))
    leave_ranks()


if __name__ == "__main__":
    main()
