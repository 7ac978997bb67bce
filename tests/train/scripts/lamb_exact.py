"""LAMB under DeepSpeed on any number of ranks, with gradients that are known: how far from one process without it.

The loss is a sum of products of every tensor with numbers of our own, so that a gradient is those numbers, whatever the
weights, the precision and the number of ranks: twelve parts, an equal share of them on each rank, integers / 64 that
half precision holds exactly. What is left to differ is LAMB. Shapes are odd, so that ZeRO's partitions cut tensors
anywhere; one tensor is used twice, one is frozen, one has no gradient in every other step; groups have their own lr,
and a schedule of ours changes both.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed.accelerator
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nezha_ds.optim.groups import parameter_groups
from nezha_ds.optim.lamb import Lamb, LambSettings, lamb_settings, whole_tensors
from nezha_ds.optim.schedule import Schedule, schedule_settings
from nezha_ds.train import engine as engines
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.engine import Engine
from nezha_ds.train.snapshot import gather_weights
from nezha_ds.world import World

STEPS, PARTS = 6, 12
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULE = {"type": "WarmupPolynomialLR", "params": {"warmup_steps": 2, "total_num_steps": 9}}
VARIANTS: dict[str, dict[str, Any]] = {
    "NEZHA": {"lr": 0.02, "weight_decay": 0.1, "nezha_ratio": True},
    "unit": {
        "lr": 0.02,
        "weight_decay": 0.1,
        "pre_normalize": True,
        "adapt_undecayed": False,
        "min_coeff": 0.05,
        "max_coeff": 0.9,
    },
}


@dataclass(frozen=True)
class Case:
    """One configuration."""

    precision: str
    stage: int
    accumulate: str | None = None
    """grad_accum_dtype, where it is written."""

    def __str__(self) -> str:
        return f"{self.precision} stage {self.stage}" + (f" accumulating {self.accumulate}" if self.accumulate else "")


BF16_AS_SHIPPED, FP16_AS_SHIPPED = Case("bf16", 1, "fp32"), Case("fp16", 1, "fp32")
CASES: dict[int, list[Case]] = {
    1: [Case("fp32", 0), Case("bf16", 0), BF16_AS_SHIPPED, FP16_AS_SHIPPED],
    2: [
        *(Case("fp32", stage) for stage in (0, 1, 2)),
        *(Case("bf16", stage) for stage in (0, 1, 2)),
        *(Case("fp16", stage) for stage in (1, 2)),
        BF16_AS_SHIPPED,
        FP16_AS_SHIPPED,
    ],
    3: [Case("fp32", 1), BF16_AS_SHIPPED, FP16_AS_SHIPPED, Case("bf16", 2)],
    4: [Case("fp32", 2), BF16_AS_SHIPPED, FP16_AS_SHIPPED, Case("bf16", 0)],
}
"""By number of ranks. fp16 without ZeRO is refused at start."""


class Model(nn.Module):
    """331 + 17·13 + 5·3·2 + 127 + 1 + 11 trained numbers, of no meaning."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * 0.5)

        self.long = made(331)
        self.frozen = made(9, 7).requires_grad_(False)
        self.matrix = made(17, 13)
        self.cube = made(5, 3, 2)
        self.at_times = made(127, 1)
        self.single = made(1)
        self.zeros = nn.Parameter(torch.zeros(11))
        self.tied = self.matrix

    def forward(self, numbers: dict[str, Tensor]) -> Tensor:
        loss = sum((getattr(self, name) * numbers[name]).sum() for name in numbers if name != "tied")
        # Its share of the gradient comes by the other name.
        return loss + (self.tied * numbers["tied"]).sum() + 0 * self.frozen.sum()


def numbers(step: int, first: int, count: int) -> dict[str, Tensor]:
    """The sums of `count` of the twelve parts, from `first` on."""
    model = Model()
    found = {}
    for k, (name, parameter) in enumerate([*model.named_parameters(), ("tied", model.matrix)]):
        if parameter.requires_grad and not (name == "at_times" and step % 2):
            generator = torch.Generator().manual_seed(100 * step + k)
            # Up to 4 x 12 and both names of the tied one: 96/64, which bf16 holds to the last bit.
            parts = torch.randint(-4, 5, (PARTS, *parameter.shape), generator=generator)
            found[name] = parts[first : first + count].sum(0) / 64
    return found


def groups_with_own_rates(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The usual two groups, and a third with a rate of its own that takes a tensor of each."""
    groups = parameter_groups(model, weight_decay)
    chosen = [p for name, p in model.named_parameters() if name in ("cube", "single")]
    for group in groups:
        group["params"] = [p for p in group["params"] if all(p is not other for other in chosen)]
    return [*groups, {"name": "own", "params": chosen, "weight_decay": weight_decay, "lr": 0.05}]


def alone(settings: LambSettings, precision: str) -> tuple[dict[str, Tensor], Tensor]:
    """Plain PyTorch in one process, with fp32 weights that begin as the precision rounds them: weights and norms."""
    model = Model().to(DTYPES[precision]).float()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    lamb = Lamb(groups_with_own_rates(model, settings.weight_decay), settings)
    lamb.bind(whole_tensors(trained), len(list(model.parameters())), None)
    schedule = Schedule(lamb, schedule_settings(SCHEDULE["type"], SCHEDULE["params"], ""), "polynomial", STEPS)
    for step in range(STEPS):
        # DeepSpeed gives zeros where there is no gradient.
        for _, parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        model(numbers(step, 0, PARTS)).backward()
        lamb.step()
        schedule.step()
    return {name: p.detach() for name, p in model.named_parameters()}, lamb.norms


def under_deepspeed(
    case: Case, variant: str, world: World, folder: Path
) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """The same through the engine, each rank with its parts; besides, what its construction made."""
    path = folder / "ds.json"
    if world.is_main:
        path.write_text(json.dumps(ds_config(case, variant, world.world_size)))
    dist.barrier()
    engine = Engine(Model(), load_ds_config(path, world.world_size), STEPS, world)
    made = facts(engine, case)
    share = PARTS // world.world_size
    for step in range(STEPS):
        # DeepSpeed takes the mean over the ranks.
        own = {name: t * world.world_size for name, t in numbers(step, world.rank * share, share).items()}
        cast = {name: t.to(DTYPES[case.precision]) for name, t in own.items()}
        engine.backward(engine(cast))  # type: ignore[arg-type]
        assert engine.step()
    assert engine._lamb is not None
    return gather_weights(engine), engine._lamb.norms, made


def facts(engine: Engine, case: Case) -> dict[str, Any]:
    """Of an engine that has made no step yet."""
    begun, weights = Model().to(DTYPES[case.precision]).float().state_dict(), gather_weights(engine)
    sizes = {name: parameter.numel() for name, parameter in engine.module.named_parameters()}
    return {
        "wrapper": type(engine._engine.optimizer).__name__,
        "updates": engine._updates(),
        "moved before": max((float((w - begun[name]).abs().max()) for name, w in weights.items()), default=0.0),
        "cut": sum(piece.numel < sizes[piece.name] for piece in engine.slices),
    }


def ds_config(case: Case, variant: str, world_size: int) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "Lamb", "params": VARIANTS[variant]},
        "scheduler": SCHEDULE,
        "zero_optimization": {"stage": case.stage},
    }
    if case.precision != "fp32":
        tree[case.precision] = {"enabled": True}
    if case.precision == "fp16":
        tree["fp16"] |= {"loss_scale": 0, "initial_scale_power": 8}
    if case.accumulate:
        tree["data_types"] = {"grad_accum_dtype": case.accumulate}
    return tree


def differences(world: World, folder: Path) -> dict[str, dict[str, Any]]:
    """Case and variant -> how far weights, and norms and ratios relatively, are from one process; and `facts`."""
    accelerator: Any = deepspeed.accelerator.get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    engines.parameter_groups = groups_with_own_rates  # type: ignore[attr-defined]
    found = {}
    for case in CASES[world.world_size]:
        for variant, params in VARIANTS.items():
            expected, norms = alone(lamb_settings(params, variant), case.precision)
            weights, others, made = under_deepspeed(case, variant, world, folder)
            if world.is_main:
                trained, start = norms[:, 1] > 0, Model().state_dict()
                moved = [(w - start[name]).abs().max() for name, w in weights.items() if name != "frozen"]
                found[f"{case}, {variant}"] = made | {
                    "weights": max(float((weights[name] - w).abs().max()) for name, w in expected.items()),
                    "ratios": float((others[trained] / norms[trained] - 1).abs().max()),
                    "moved": float(min(moved)),
                    "trained": int(trained.sum()),
                }
    return found
