"""Steps of a growing batch under ZeRO 0, 1 and 2, and in plain PyTorch on each whole batch; the differences.

SGD without momentum: unlike LAMB it shows at once when gradients are averaged over another number of micro-batches.
Arguments: a folder for the results.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.optim.groups import parameter_groups
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.engine import Engine, join_ranks, leave_ranks
from nezha_ds.train.snapshot import gather_weights
from nezha_ds.world import find_world
from tests.train.scripts.lamb_under_zero import batch, model

STEPS, MICRO_BATCH, RATE = 6, 2, 0.5
BATCHES = [4, 4, 12, 8, 16, 16]
"""One and two steps of a stage, more micro-batches and fewer."""
STAGES = [
    {"train_batch_size": 4, "steps": 2},
    {"train_batch_size": 12, "steps": 1},
    {"train_batch_size": 8, "steps": 1},
]


def alone() -> dict[str, torch.Tensor]:
    made = model()
    optimizer = torch.optim.SGD(parameter_groups(made, 0.0), lr=RATE)
    for step in range(STEPS):
        made.zero_grad()
        whole = batch(step, 0, BATCHES[step])
        pretraining_losses(made(whole), whole, ObjectiveSettings()).total.backward()
        optimizer.step()
    return {name: p.detach() for name, p in made.named_parameters()}


def under_zero(stage: int, folder: Path) -> dict[str, torch.Tensor]:
    world = find_world()
    path = folder / f"{stage}.json"
    if world.is_main:
        tree = {
            "train_batch_size": 16,
            "train_micro_batch_size_per_gpu": MICRO_BATCH,
            "batch_warmup": STAGES,
            "gradient_clipping": 0.0,
            "optimizer": {"type": "SGD", "params": {"lr": RATE}},
            "zero_optimization": {"stage": stage},
        }
        path.write_text(json.dumps(tree))
    dist.barrier()
    config = load_ds_config(path, world.world_size)
    engine = Engine(model(), config, STEPS, world)
    for step in range(STEPS):
        engine.begin_step(step)
        share = config.batch.global_batch_at(step) // world.world_size
        for number in range(config.batch.accumulation_at(step)):
            micro = batch(step, world.rank * share + number * MICRO_BATCH, MICRO_BATCH)
            engine.backward(pretraining_losses(engine(micro), micro, ObjectiveSettings()).total)
        assert engine.step()
    return gather_weights(engine)


def main() -> None:
    folder = Path(sys.argv[-1])
    world = find_world()
    join_ranks(world)
    expected, start = alone(), dict(model().named_parameters())
    found = {"moved": max(float((expected[name] - start[name]).abs().max()) for name in expected)}
    for stage in range(3):
        weights = under_zero(stage, folder)
        if world.is_main:
            found[f"stage {stage}"] = max(float((weights[name] - expected[name]).abs().max()) for name in weights)
    if world.is_main:
        (folder / "differences.json").write_text(json.dumps(found))
    leave_ranks()


if __name__ == "__main__":
    main()
