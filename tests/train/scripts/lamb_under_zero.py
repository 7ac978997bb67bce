"""Ten LAMB steps of a small NEZHA under ZeRO 0, 1 and 2, and in plain PyTorch on the whole batch; the differences.

With two ranks; and the cases of lamb_exact.py with 1 to 4. Arguments: a folder for the results, WORLD_SIZE.json each.
"""

import json
import multiprocessing.connection
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nezha_ds.batch import Batch
from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.optim.groups import parameter_groups
from nezha_ds.optim.lamb import Lamb, LambSettings, whole_tensors
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.engine import Engine, join_ranks, leave_ranks
from nezha_ds.train.run import freeze_unused
from nezha_ds.train.snapshot import gather_weights
from nezha_ds.world import World, find_world
from tests.helpers.ranks import free_port
from tests.train.scripts import lamb_exact

STEPS, GLOBAL_BATCH, MICRO_BATCH = 10, 16, 4
LAMB = LambSettings(lr=0.01, weight_decay=0.01)


def model() -> NezhaForPreTraining:
    config = preset(
        "tiny",
        vocab_size=331,
        hidden_size=48,
        num_hidden_layers=2,
        intermediate_size=100,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    made = NezhaForPreTraining(config, seed=5)
    freeze_unused(made, ObjectiveSettings())
    return made


def batch(step: int, first: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(5, 331, (GLOBAL_BATCH, 24), generator=generator)
    positions = torch.arange(2, 20, 3).expand(GLOBAL_BATCH, -1)
    whole = Batch(
        input_ids=ids.scatter(1, positions, 103),
        token_type_ids=torch.zeros_like(ids),
        lengths=torch.full((GLOBAL_BATCH,), 24),
        mlm_positions=positions,
        mlm_labels=ids.gather(1, positions),
        sample_ids=torch.arange(GLOBAL_BATCH),
    )
    parts = {
        name: getattr(whole, name)[first : first + count]
        for name in Batch.__slots__
        if getattr(whole, name) is not None
    }
    return Batch(**parts)


def alone() -> dict[str, torch.Tensor]:
    """Plain PyTorch: the whole batch, no DeepSpeed."""
    made = model()
    trained = [(name, p) for name, p in made.named_parameters() if p.requires_grad]
    lamb = Lamb(parameter_groups(made, LAMB.weight_decay), LAMB)
    lamb.bind(whole_tensors(trained), len(trained), None)
    for step in range(STEPS):
        made.zero_grad()
        whole = batch(step, 0, GLOBAL_BATCH)
        pretraining_losses(made(whole), whole, ObjectiveSettings()).total.backward()
        lamb.step()
    return {name: p.detach() for name, p in made.named_parameters()}


def under_zero(stage: int, folder: Path, aware: bool) -> dict[str, torch.Tensor]:
    """The same through the engine; an unaware LAMB takes each flat partition for a tensor."""
    world = find_world()
    path = folder / f"{stage}-{aware}.json"
    if world.is_main:
        tree = {
            "train_batch_size": GLOBAL_BATCH,
            "train_micro_batch_size_per_gpu": MICRO_BATCH,
            "gradient_clipping": 0.0,
            "optimizer": {"type": "Lamb", "params": LAMB.model_dump(mode="json")},
            "zero_optimization": {"stage": stage},
        }
        path.write_text(json.dumps(tree))
    dist.barrier()
    engine = Engine(model(), load_ds_config(path, world.world_size), STEPS, world)
    if not aware:
        owners = {id(piece.owner): piece.owner for piece in engine.slices}
        engine._lamb.bind(whole_tensors((str(k), t) for k, t in owners.items()), len(owners), None)
    share = GLOBAL_BATCH // world.world_size
    for step in range(STEPS):
        for first in range(world.rank * share, (world.rank + 1) * share, MICRO_BATCH):
            micro = batch(step, first, MICRO_BATCH)
            engine.backward(pretraining_losses(engine(micro), micro, ObjectiveSettings()).total)
        engine.step()
    return gather_weights(engine)


def of_nezha(world: World, folder: Path) -> dict[str, float]:
    """The largest difference of any weight, by stage."""
    expected = alone()
    differences = {}
    for stage, aware in ((0, True), (1, True), (2, True), (1, False)):
        weights = under_zero(stage, folder, aware)
        if world.is_main:
            worst = max(float((weights[name] - expected[name]).abs().max()) for name in weights)
            differences[f"stage {stage}{'' if aware else ' unaware'}"] = worst
    return differences


def as_rank(rank: int, world_size: int, port: int, folder: Path) -> None:
    """One rank of some, in a process of its own."""
    of_all = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {name: str(number) for name, number in of_all.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = find_world()
    join_ranks(world)
    results = {"nezha": of_nezha(world, folder) if world_size == 2 else {}}
    results["exact"] = lamb_exact.differences(world, folder)
    if world.is_main:
        (folder / f"{world_size}.json").write_text(json.dumps(results))
    leave_ranks()


def main() -> None:
    # Forked, so that ten ranks import torch and DeepSpeed once: that takes 7 s, and all their cases less.
    fork = multiprocessing.get_context("fork")
    for world_size in lamb_exact.CASES:
        port = free_port()
        started = [
            fork.Process(target=as_rank, args=(r, world_size, port, Path(sys.argv[-1]))) for r in range(world_size)
        ]
        for process in started:
            process.start()
        running = {process.sentinel: process for process in started}
        while running:
            for ended in multiprocessing.connection.wait(list(running)):
                running.pop(ended).join()
            if any(process.exitcode for process in started):
                for process in running.values():
                    process.kill()
                sys.exit(f"of {world_size} ranks one ended badly")


if __name__ == "__main__":
    main()
