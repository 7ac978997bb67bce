"""Steps of a tiny NEZHA in fp16 on two ranks whose gradients overflow where the script wants it; what came of them.

Arguments: a folder for the results. An overflow is one infinite gradient, on the last rank only.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nezha_ds.batch import Batch
from nezha_ds.errors import DivergedError
from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.train.checkpoint import gather_weights
from nezha_ds.train.ds_config import DeepSpeedConfig, load_ds_config
from nezha_ds.train.engine import Engine, claim_fp16, join_ranks, leave_ranks
from nezha_ds.train.run import freeze_unused
from nezha_ds.world import World, find_world

OBJECTIVES = ObjectiveSettings()
VOCABULARY, LENGTH = 331, 16
OPTIMIZERS = {
    "Lamb": {"type": "Lamb", "params": {"lr": 0.01}},
    "AdamW": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
}
SCHEDULE = {"type": "WarmupConstantLR", "params": {"warmup_steps": 20}}
MANY = 512
TRACE = "....x.xx......x.......xxx......x.x"
RULES = {
    "hysteresis 1": {"hysteresis": 1, "loss_scale_window": 3},
    "hysteresis 2": {"hysteresis": 2, "loss_scale_window": 4},
    "hysteresis 3, refilled by every sound step": {
        "hysteresis": 3,
        "loss_scale_window": 5,
        "consecutive_hysteresis": True,
        "min_loss_scale": 512,
    },
}
"""What the scale is looked at under, for TRACE, in which an x overflows."""


class Case:
    """An engine, and steps with or without an overflow."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.world: World = find_world()
        self.engine = Engine(model(), configure(folder, self.world, **changes), 100, self.world)
        self.overflowing = False
        next(self.engine.module.parameters()).register_hook(self._overflow)

    def _overflow(self, gradient: Tensor) -> Tensor:
        bad = self.overflowing and self.world.rank == self.world.world_size - 1
        return torch.full_like(gradient, torch.inf) if bad else gradient

    def step(self, number: int, overflow: bool = False) -> bool:
        """Step `number`'s samples; whether weights were updated."""
        self.overflowing = overflow
        batch, micro = self.engine.config.batch, self.engine.config.batch.micro_batch
        whole = samples(number, batch.global_batch)
        first = self.world.rank * batch.micro_batch * batch.accumulation
        for begin in range(first, first + micro * batch.accumulation, micro):
            part = rows(whole, begin, micro)
            self.engine.backward(pretraining_losses(self.engine(part), part, OBJECTIVES).total)
        return self.engine.step()

    def bits(self) -> str:
        """Of all that an update moves: weights, masters and moments, of all ranks."""
        tensors = [*self.engine.module.parameters()]
        tensors += [piece.of(piece.owner) for piece in self.engine.slices]
        tensors += [moment for piece in self.engine.slices for moment in self.engine.moments(piece).values()]
        own = sha256(b"".join(t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)).hexdigest()
        of_all: list[Any] = [None] * self.world.world_size
        dist.all_gather_object(of_all, own)
        return " ".join(of_all)

    def facts(self) -> dict[str, Any]:
        engine = self.engine
        return {"bits": self.bits(), "rate": engine.learning_rate, "scale": engine.loss_scale} | engine.counters()


def model() -> NezhaForPreTraining:
    narrow = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    made = NezhaForPreTraining(preset("tiny", vocab_size=VOCABULARY, **narrow, **rates), seed=5)
    freeze_unused(made, OBJECTIVES)
    return made


def configure(folder: Path, world: World, stage: int = 1, fp16: Any = (), **changes: Any) -> DeepSpeedConfig:
    path = folder / f"{sha256(repr((stage, fp16, changes)).encode()).hexdigest()}.json"
    tree = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.0,
        "optimizer": OPTIMIZERS["Lamb"],
        "scheduler": SCHEDULE,
        "zero_optimization": {"stage": stage},
        "data_types": {"grad_accum_dtype": "fp32"},
        "fp16": {"enabled": True, "initial_scale_power": 10, **dict(fp16)},
        **changes,
    }
    if world.is_main:
        path.write_text(json.dumps(tree))
    dist.barrier()
    return load_ds_config(path, world.world_size)


def samples(number: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(5, VOCABULARY, (count, LENGTH), generator=generator)
    positions = torch.arange(2, LENGTH, 3).expand(count, -1)
    return Batch(
        input_ids=ids.scatter(1, positions, 103),
        token_type_ids=torch.zeros_like(ids),
        lengths=torch.full((count,), LENGTH),
        mlm_positions=positions,
        mlm_labels=ids.gather(1, positions),
        sample_ids=torch.arange(count),
    )


def rows(whole: Batch, first: int, count: int) -> Batch:
    fields = {name: getattr(whole, name) for name in Batch.__slots__}
    return Batch(**{name: field[first : first + count] for name, field in fields.items() if field is not None})


# ------------------------------------------------------------------------------------------------- what is looked at


def skipped(folder: Path, stage: int, optimizer: str) -> dict[str, Any]:
    """Two steps, one that overflows, two more; and the same four without it."""
    told: dict[str, Any] = {}
    with_overflow = Case(folder, stage=stage, optimizer=OPTIMIZERS[optimizer])
    told["wrapper"] = type(with_overflow.engine._engine.optimizer).__name__
    for number in (0, 1):
        assert with_overflow.step(number)
    told["before"] = with_overflow.facts()
    told["made"] = with_overflow.step(2, overflow=True)
    told["after"] = with_overflow.facts()
    without = Case(folder, stage=stage, optimizer=OPTIMIZERS[optimizer])
    for number in (0, 1, 3, 4):
        assert without.step(number)
    for number in (3, 4):
        assert with_overflow.step(number)
    return told | {"end": with_overflow.facts(), "end without": without.facts()}


def trace(folder: Path, overflows: str, **fp16: Any) -> Iterator[float]:
    """The scale after each step; `overflows` has an x where one does."""
    case = Case(folder, fp16=fp16)
    for number, letter in enumerate(overflows):
        assert case.step(number, letter == "x") == (letter != "x")
        assert case.engine.loss_scale is not None
        yield case.engine.loss_scale


def doubling(folder: Path, stage: int) -> dict[str, Any]:
    """Four steps in the last of which the scale doubles, and four without."""
    cases = {window: Case(folder, stage=stage, fp16={"loss_scale_window": window}) for window in (3, 1000)}
    for case in cases.values():
        for number in range(4):
            assert case.step(number)
    return {str(window): case.facts() for window, case in cases.items()}


def minimum(folder: Path) -> dict[str, Any]:
    """Down to the minimum, and one overflow more."""
    case = Case(folder, fp16={"initial_scale_power": 2, "hysteresis": 2, "min_loss_scale": 2})
    assert case.step(0)
    assert not any(case.step(number, overflow=True) for number in (1, 2))
    before, message = case.facts(), ""
    try:
        case.step(3, overflow=True)
    except DivergedError as error:
        message = str(error)
    messages: list[Any] = [None] * case.world.world_size
    dist.all_gather_object(messages, message)
    return {"before": before, "after": case.facts(), "messages": messages}


def restored(folder: Path) -> dict[str, Any]:
    """The loss scale that another engine goes on with, under the same JSON and under others."""
    case = Case(folder, fp16={"initial_scale_power": 3, "loss_scale_window": 6, "hysteresis": 3})
    for number, letter in enumerate("..x...."):
        case.step(number, letter == "x")
    counters = case.engine.counters()
    told: dict[str, Any] = {"left": counters["loss_scaler"]}
    others = {
        "same": {"initial_scale_power": 3, "loss_scale_window": 6, "hysteresis": 3},
        "higher minimum": {"min_loss_scale": 16},
        "less hysteresis": {"hysteresis": 1},
    }
    for name, fp16 in others.items():
        engine = Case(folder, fp16=fp16).engine
        engine.restore_counters(counters, 7)
        scaler = engine._engine.optimizer.loss_scaler
        told[name] = engine.counters()["loss_scaler"] | {"window": scaler.scale_window, "minimum": scaler.min_scale}
    engine = Case(folder).engine
    engine.restore_counters(counters | {"loss_scaler": {}}, 7)
    return told | {"from bf16": engine.counters()["loss_scaler"]}


def gradients(folder: Path, stage: int, micro_batch: int, sums: str) -> dict[str, Tensor]:
    """What one step of plain descent at rate 1 takes from the weights; `sums` is the precision they add up in."""
    world = find_world()
    config = configure(
        folder,
        world,
        stage,
        fp16={"initial_scale_power": 14},
        train_batch_size=MANY,
        train_micro_batch_size_per_gpu=micro_batch,
        optimizer={"type": "SGD", "params": {"lr": 1.0}},
        scheduler={"type": "WarmupConstantLR", "params": {}},
    )
    resolved = {**config.resolved, "data_types": {"grad_accum_dtype": sums}}
    case = Case.__new__(Case)
    case.world, case.overflowing = world, False
    case.engine = Engine(model(), replace(config, resolved=resolved), 1, world)
    before = gather_weights(case.engine)
    assert case.step(0)
    after = gather_weights(case.engine)
    return {name: before[name] - after[name] for name in before}


def in_fp32() -> dict[str, Tensor]:
    """The same by plain PyTorch in fp32, from weights rounded to fp16."""
    made, whole = model().half().float(), samples(0, MANY)
    pretraining_losses(made(whole), whole, OBJECTIVES).total.backward()
    return {name: p.grad for name, p in made.named_parameters() if p.grad is not None}


def error(ours: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Of the whole gradient, relative to its norm."""
    off = sum(float((ours[name] - grad).square().sum()) for name, grad in right.items())
    return (off / sum(float(grad.square().sum()) for grad in right.values())) ** 0.5


def accumulated(folder: Path) -> dict[str, float]:
    kinds: Iterable[tuple[str, int, int, str]] = (
        ("one batch", 1, MANY, "fp32"),
        ("512 in fp32", 1, 1, "fp32"),
        ("512 in fp32, stage 2", 2, 1, "fp32"),
        ("512 in fp16", 1, 1, "fp16"),
    )
    right = in_fp32()
    told = {}
    for name, *kind in kinds:
        ours = gradients(folder, *kind)
        if ours:
            told[name] = error(ours, right)
    return told


def main() -> None:
    folder, world = Path(sys.argv[-1]), find_world()
    claim_fp16()
    join_ranks(world)
    told: dict[str, Any] = {
        "skipped": {f"{stage} {name}": skipped(folder, stage, name) for stage in (1, 2) for name in OPTIMIZERS},
        "doubling": {str(stage): doubling(folder, stage) for stage in (1, 2)},
        "minimum": minimum(folder),
        "restored": restored(folder),
        "traces": {name: list(trace(folder, TRACE, **fp16)) for name, fp16 in RULES.items()},
        "accumulated": accumulated(folder),
    }
    if world.is_main:
        (folder / "told.json").write_text(json.dumps(told))
    leave_ranks()


if __name__ == "__main__":
    main()
