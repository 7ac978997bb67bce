"""A tiny NEZHA learns one batch by heart in half precision: our LAMB under DeepSpeed, ZeRO 1, beside fp32 without it.

    python -m tests.gpu.half_precision fp16 cpu FOLDER

The loss scale of fp16 begins far too high, so that the first steps overflow. DeepSpeed refuses fp16 on most CPUs, where
torch computes it all the same, only slowly: its answer is overridden. Writes FOLDER/result.json.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from nezha_ds.batch import Batch
from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.optim.groups import parameter_groups
from nezha_ds.optim.lamb import Lamb, LambSettings, whole_tensors
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.engine import Engine, claim_fp16, join_ranks, leave_ranks
from nezha_ds.train.run import freeze_unused
from nezha_ds.world import find_world

STEPS, SAMPLES, LENGTH, VOCABULARY = 30, 8, 32, 331
LAMB = LambSettings(lr=0.02, weight_decay=0.01)
OBJECTIVES = ObjectiveSettings()
SCALE_POWER, WINDOW = 24, 8


@dataclass
class Result:
    """What the test looks at."""

    losses: list[float] = field(default_factory=list)
    """Before each update that was made."""
    in_fp32: list[float] = field(default_factory=list)
    """The same by plain PyTorch in fp32."""
    scales: list[float] = field(default_factory=list)
    """After every step, also a skipped one; empty in bf16."""
    made: list[bool] = field(default_factory=list)
    """Whether each step updated the weights."""
    moved: list[bool] = field(default_factory=list)
    """Whether each step changed any weight."""
    scale_power: int = SCALE_POWER
    """Of the loss scale at the beginning."""


def model() -> NezhaForPreTraining:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    made = NezhaForPreTraining(preset("tiny", vocab_size=VOCABULARY, **sizes, **rates), seed=5)
    freeze_unused(made, OBJECTIVES)
    return made


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    positions = torch.arange(2, LENGTH, 6).expand(SAMPLES, -1)
    return Batch(
        input_ids=ids.scatter(1, positions, 103),
        token_type_ids=torch.zeros_like(ids),
        lengths=torch.full((SAMPLES,), LENGTH),
        mlm_positions=positions,
        mlm_labels=ids.gather(1, positions),
        sample_ids=torch.arange(SAMPLES),
    )


def in_fp32(updates: int, device: torch.device) -> list[float]:
    """Plain PyTorch: the losses before so many updates."""
    made, given = model().to(device), batch().to(device)
    trained = [(name, p) for name, p in made.named_parameters() if p.requires_grad]
    lamb = Lamb(parameter_groups(made, LAMB.weight_decay), LAMB)
    lamb.bind(whole_tensors(trained), len(trained), None)
    losses = []
    for _ in range(updates):
        made.zero_grad()
        loss = pretraining_losses(made(given), given, OBJECTIVES).total
        loss.backward()
        lamb.step()
        losses.append(loss.item())
    return losses


def under_deepspeed(precision: str, folder: Path) -> tuple[Result, torch.device]:
    """STEPS steps, of which those that overflow update nothing."""
    path = folder / "ds_config.json"
    tree = {
        "train_batch_size": SAMPLES,
        "train_micro_batch_size_per_gpu": SAMPLES,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "Lamb", "params": LAMB.model_dump(mode="json")},
        "zero_optimization": {"stage": 1},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    scaling = {"initial_scale_power": SCALE_POWER, "loss_scale_window": WINDOW, "hysteresis": 1}
    tree[precision] = {"enabled": True} | (scaling if precision == "fp16" else {})
    path.write_text(json.dumps(tree))
    engine = Engine(model(), load_ds_config(path, 1), STEPS, find_world())
    given, result = batch().to(engine.device), Result()
    for _ in range(STEPS):
        before = [p.detach().clone() for p in engine.module.parameters()]
        loss = pretraining_losses(engine(given), given, OBJECTIVES).total
        engine.backward(loss)
        made = engine.step()
        if made:
            result.losses.append(loss.item())
        if engine.loss_scale is not None:
            result.scales.append(engine.loss_scale)
        result.made.append(made)
        result.moved.append(any(not torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True)))
    return result, engine.device


def main(precision: str, device: str, folder: Path) -> None:
    accelerator = get_accelerator()
    assert accelerator is not None and accelerator.device_name() == device, accelerator
    if device == "cpu":
        claim_fp16()
    join_ranks(find_world())
    result, where = under_deepspeed(precision, folder)
    result.in_fp32 = in_fp32(len(result.losses), where)
    (folder / "result.json").write_text(json.dumps(asdict(result)))
    leave_ranks()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
