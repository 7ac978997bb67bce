"""A DeepSpeed JSON, checked before a device is touched and completed for this world size.

What DeepSpeed has a key for lives in the JSON and nowhere else. Five things are ours:

- `"optimizer": {"type": "Lamb"}` is our LAMB, and `"scheduler"` may be one of our types; both are taken out of what
  DeepSpeed sees. Every other type goes to DeepSpeed untouched.
- `train_micro_batch_size_per_gpu` is the most samples that fit on a device: the largest divisor of this rank's share
  of `train_batch_size` that is not above it is taken, so that one JSON serves many world sizes (batches.py).
- `batch_warmup` says how the batch grows to `train_batch_size` (batches.py too).
- `gradient_clipping` must be written: DeepSpeed clips at 1.0 when it is not, and says nothing.
- Combinations that DeepSpeed accepts and that train wrongly are refused.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nezha_ds.config import nearest
from nezha_ds.errors import ConfigError
from nezha_ds.optim.lamb import LambSettings, lamb_settings
from nezha_ds.optim.schedule import (
    SCHEDULES,
    ScheduleSettings,
    is_ours,
    scaled_warmup,
    schedule_settings,
    square_root_lr,
)
from nezha_ds.train.batches import BatchSizes, batch_sizes
from nezha_ds.train.loss_scale import check_loss_scale

Precision = Literal["fp32", "bf16", "fp16"]

KNOWN_KEYS = frozenset(
    """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps batch_warmup optimizer scheduler
    zero_optimization fp16 bf16 bfloat16 data_types gradient_clipping communication_data_type prescale_gradients
    gradient_predivide_factor sparse_gradients steps_per_print wall_clock_breakdown dump_state memory_breakdown
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer aio flops_profiler comms_logger tensorboard wandb
    csv_monitor comet torch_autocast seed""".split()
)
"""Top-level keys of DeepSpeed 0.19 that make sense here. It ignores a misspelt one in silence; we do not, and we refuse
those that would take data, checkpoints or batch sizes out of our hands (elasticity, curriculum_learning …)."""

IN_THE_RECIPE = {"activation_checkpointing": "train.checkpoint_activations", "compile": "train.compile"}
"""Keys that DeepSpeed takes and that do nothing to a model which does not call it: the recipe has them."""

OPTIMIZERS = frozenset("adagrad adam adamw lamb lion muadam muadamw musgd muon".split())
SCHEDULERS = ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
"""What DeepSpeed 0.19 knows besides torch's own; optimizers in any case."""

HALF_SUMS = 16
"""Micro-batches that may add up in half precision. A gradient of 16 is off by 1.3e-3 in fp16 and 1.0e-2 in bf16, hardly
more than if they add up in fp32, 1.0e-3 and 7e-3; one of 512 by 2.1e-2 and 2.2e-1 against 1.4e-3 and 1.4e-2."""

QUIET = 1 << 30
"""`steps_per_print`: the console and the exporter are ours."""


@dataclass(frozen=True)
class DeepSpeedConfig:
    """A checked JSON for one world size."""

    source: str
    written: dict[str, Any]
    """The JSON as its author wrote it."""
    resolved: dict[str, Any]
    """What DeepSpeed is given."""
    batch: BatchSizes
    precision: Precision
    zero_stage: int
    weight_decay: float
    lamb: LambSettings | None
    """None: the optimizer is DeepSpeed's."""
    schedule: tuple[str, ScheduleSettings] | None
    """A type of ours with its settings; None: DeepSpeed's, or constant."""


def load_ds_config(path: Path, world_size: int) -> DeepSpeedConfig:
    """Read, check and complete a DeepSpeed JSON; ConfigError names the file, the value and the way out."""
    written = _read(path)
    source = str(path)
    for check in _CHECKS:
        check(source, written)
    batch = batch_sizes(source, written, world_size)
    _check_sums(source, written, batch.accumulation)
    optimizer, scheduler = written["optimizer"], written.get("scheduler")
    params = dict(optimizer.get("params", {}))
    ours = optimizer["type"].lower() == "lamb"
    schedule = scheduler if scheduler and is_ours(scheduler["type"]) else None
    return DeepSpeedConfig(
        source=source,
        written=written,
        resolved=_resolved(
            written, batch, drop=["batch_warmup", *["optimizer"] * ours, *["scheduler"] * bool(schedule)]
        ),
        batch=batch,
        precision=_precision(written),
        zero_stage=_zero_stage(written),
        weight_decay=float(params.get("weight_decay", LambSettings().weight_decay if ours else 0.0)),
        lamb=lamb_settings(params, f"{source}: optimizer.params") if ours else None,
        schedule=schedule
        and (
            schedule["type"],
            schedule_settings(schedule["type"], schedule.get("params", {}), f"{source}: scheduler.params"),
        ),
    )


def scaled(config: DeepSpeedConfig, batch: int) -> dict[str, Any]:
    """The values of a JSON for another batch, by key: the rate by the root of it, the warm-up as many steps as before.

    ConfigError for a batch that is none, a JSON without a rate, and a warm-up that would be longer than the run.
    """
    if batch < 1:
        raise ConfigError(f"a batch of {batch} samples is none; name a train_batch_size of 1 or more")
    lr = config.lamb.lr if config.lamb else config.written["optimizer"].get("params", {}).get("lr")
    if not _is_number(lr):
        raise ConfigError(f"{config.source}: optimizer.params.lr = {lr!r} is not a rate to begin from; write one")
    values = {"train_batch_size": batch, "lr": square_root_lr(lr, config.batch.global_batch, batch)}
    settings = scaled_warmup(config.schedule[1], config.batch.global_batch, batch) if config.schedule else None
    if settings and settings.warmup_ratio is not None:
        return values | {"warmup_ratio": settings.warmup_ratio}
    return values | ({"warmup_steps": settings.warmup_steps} if settings and settings.warmup_steps is not None else {})


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ConfigError(f"DeepSpeed JSON {path} cannot be read ({error.strerror}); name an existing file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"DeepSpeed JSON {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"DeepSpeed JSON {path} is not valid: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"DeepSpeed JSON {path} holds a {type(tree).__name__}, not an object of settings")
    return tree


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice; keep one")
    return tree


def _precision(tree: dict[str, Any]) -> Precision:
    if tree.get("fp16", {}).get("enabled", False):
        return "fp16"
    return "bf16" if _bf16(tree).get("enabled", False) else "fp32"


def _bf16(tree: dict[str, Any]) -> dict[str, Any]:
    return tree.get("bf16") or tree.get("bfloat16") or {}


def _zero_stage(tree: dict[str, Any]) -> int:
    return int(tree.get("zero_optimization", {}).get("stage", 0))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _resolved(tree: dict[str, Any], batch: BatchSizes, drop: list[str]) -> dict[str, Any]:
    resolved = {key: value for key, value in tree.items() if key not in drop}
    resolved["train_micro_batch_size_per_gpu"] = batch.micro_batch
    resolved["gradient_accumulation_steps"] = batch.accumulation
    resolved.setdefault("steps_per_print", QUIET)
    # DeepSpeed's list of tested optimizers has none but its own.
    resolved["zero_allow_untested_optimizer"] = True
    return resolved


# ---------------------------------------------------------------------------------- what DeepSpeed would let pass


def _check_keys(source: str, tree: dict[str, Any]) -> None:
    for key in tree.keys() & IN_THE_RECIPE.keys():
        raise ConfigError(f"{source}: {key} does nothing here; set {IN_THE_RECIPE[key]} in the recipe")
    for key in tree.keys() - KNOWN_KEYS:
        raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, KNOWN_KEYS)}")


def _check_sections(source: str, tree: dict[str, Any]) -> None:
    for key in ("zero_optimization", "fp16", "bf16", "bfloat16", "data_types"):
        if not isinstance(tree.get(key, {}), dict):
            raise ConfigError(f'{source}: {key} = {tree[key]!r} is not an object such as {{"enabled": true}}')
    for key in ("optimizer", "scheduler"):
        section = tree.get(key, {"type": ""})
        if not isinstance(section, dict) or not isinstance(section.get("type"), str):
            raise ConfigError(f'{source}: {key} has no type; write "{key}": {{"type": …, "params": {{…}}}}')
        for stray in sorted(section.keys() - {"type", "params", "legacy_fusion"}):
            raise ConfigError(f"{source}: {key}.{stray} is not read by DeepSpeed; move it into {key}.params")
        if not isinstance(section.get("params", {}), dict):
            raise ConfigError(
                f'{source}: {key}.params = {section["params"]!r} is not an object such as {{"lr": 0.001}}'
            )


def _check_optimizer(source: str, tree: dict[str, Any]) -> None:
    if "optimizer" not in tree:
        raise ConfigError(f'{source}: no optimizer; write "optimizer": {{"type": "Lamb", "params": {{"lr": 0.001}}}}')
    kind = tree["optimizer"]["type"]
    if kind.lower() not in OPTIMIZERS and not hasattr(torch.optim, kind):
        raise ConfigError(f"{source}: unknown optimizer {kind!r}{nearest(kind, [*OPTIMIZERS, 'Lamb', 'AdamW'])}")
    decay = tree["optimizer"].get("params", {}).get("weight_decay", 0)
    if not _is_number(decay):
        raise ConfigError(f"{source}: optimizer.params.weight_decay = {decay!r} is not a number; write 0.01, or 0")


def _check_scheduler(source: str, tree: dict[str, Any]) -> None:
    kind = tree["scheduler"]["type"] if "scheduler" in tree else "WarmupLR"
    if kind not in SCHEDULERS and not is_ours(kind) and not hasattr(torch.optim.lr_scheduler, kind):
        raise ConfigError(f"{source}: unknown scheduler {kind!r}{nearest(kind, [*SCHEDULES, *SCHEDULERS])}")


def _check_clipping(source: str, tree: dict[str, Any]) -> None:
    if "gradient_clipping" not in tree:
        raise ConfigError(
            f"{source}: gradient_clipping is missing, and DeepSpeed would clip at 1.0 without a word; "
            "write 1.0, or 0.0 for none"
        )
    if not _is_number(tree["gradient_clipping"]) or tree["gradient_clipping"] < 0:
        raise ConfigError(
            f"{source}: gradient_clipping = {tree['gradient_clipping']!r} is not a norm; write 1.0, or 0.0 for none"
        )


def _check_pre_normalize(source: str, tree: dict[str, Any]) -> None:
    if tree["optimizer"]["type"].lower() != "lamb" or not tree["optimizer"].get("params", {}).get("pre_normalize"):
        return
    if tree["gradient_clipping"]:
        raise ConfigError(
            f"{source}: gradient_clipping {tree['gradient_clipping']} changes nothing before optimizer.params."
            "pre_normalize, which divides by the whole norm; write 0.0, or remove pre_normalize"
        )
    if not tree.get("zero_optimization", {}).get("compute_grad_norm", True):
        raise ConfigError(
            f"{source}: optimizer.params.pre_normalize needs the norm that zero_optimization.compute_grad_norm false "
            "leaves out; remove that key"
        )


def _check_precision(source: str, tree: dict[str, Any]) -> None:
    check_loss_scale(source, tree.get("fp16", {}))
    if tree.get("fp16", {}).get("enabled") and _bf16(tree).get("enabled"):
        raise ConfigError(f"{source}: fp16 and bf16 are both enabled; keep one")
    if _precision(tree) == "fp16" and _zero_stage(tree) == 0:
        raise ConfigError(
            f"{source}: fp16 without ZeRO adds up micro-batches in fp16 and ignores hysteresis; "
            'write "zero_optimization": {"stage": 1} and "data_types": {"grad_accum_dtype": "fp32"}'
        )
    accumulated = tree.get("data_types", {}).get("grad_accum_dtype")
    if _precision(tree) != "fp32" and _zero_stage(tree) == 0 and accumulated not in (None, _precision(tree)):
        raise ConfigError(
            f"{source}: without ZeRO DeepSpeed adds gradients up in {_precision(tree)} only, not {accumulated}; "
            'write "zero_optimization": {"stage": 1}'
        )


def _check_sums(source: str, tree: dict[str, Any], accumulation: int) -> None:
    """Small gradients vanish beside a sum of many in half precision."""
    precision, sums = _precision(tree), tree.get("data_types", {}).get("grad_accum_dtype")
    if precision != "fp32" and sums != "fp32" and accumulation > HALF_SUMS:
        raise ConfigError(
            f"{source}: {accumulation} micro-batches would add up in {precision}, which loses the small gradients; "
            'write "data_types": {"grad_accum_dtype": "fp32"} and "zero_optimization": {"stage": 1}'
        )


def _check_autocast(source: str, tree: dict[str, Any]) -> None:
    autocast = tree.get("torch_autocast", {})
    if isinstance(autocast, dict) and autocast.get("enabled") and autocast.get("dtype") in ("fp16", "float16", "half"):
        raise ConfigError(
            f"{source}: torch_autocast in {autocast['dtype']} computes without the loss scale that the section fp16 "
            'describes; write "fp16": {"enabled": true} instead, or its dtype as "bfloat16"'
        )


def _check_zero(source: str, tree: dict[str, Any]) -> None:
    zero = tree.get("zero_optimization", {})
    if zero.get("stage", 0) not in range(4):
        raise ConfigError(f"{source}: zero_optimization.stage = {zero['stage']!r} is no stage; write 0, 1 or 2")
    if _zero_stage(tree) > 2:
        raise ConfigError(
            f"{source}: ZeRO stage {_zero_stage(tree)} splits the model's tensors, which checkpoints and LAMB need "
            "whole; use stage 1 or 2: NEZHA-large has 5 GB of weights, gradients and moments"
        )
    for key in ("offload_optimizer", "offload_param", "cpu_offload"):
        if zero.get(key):
            raise ConfigError(f"{source}: zero_optimization.{key} is not supported; remove it and raise the stage to 2")


_CHECKS: tuple[Callable[[str, dict[str, Any]], None], ...] = (
    _check_keys,
    _check_sections,
    _check_optimizer,
    _check_scheduler,
    _check_clipping,
    _check_pre_normalize,
    _check_zero,
    _check_precision,
    _check_autocast,
)
