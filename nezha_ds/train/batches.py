"""The batch sizes of a run at one world size, from the keys of a DeepSpeed JSON; pure values, known before any rank.

    "train_batch_size": 32768,
    "train_micro_batch_size_per_gpu": 16,
    "batch_warmup": [{"train_batch_size": 4096, "steps": 1000}, {"train_batch_size": 8192, "steps": 1000}]

`train_micro_batch_size_per_gpu` is the most samples that fit on a device: the largest divisor of this rank's share of
every batch that is not above it is taken. Micro-batches keep that size when the batch grows, and accumulation follows.
`batch_warmup` is ours: DeepSpeed does not see it. It counts steps, as `train.steps` and the warm-up of the rate do.
"""

import math
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from nezha_ds.config import Settings, build
from nezha_ds.data.batches import BatchSchedule, Stage
from nezha_ds.errors import ConfigError


class WarmupStage(Settings):
    """One entry of `batch_warmup`."""

    train_batch_size: int = Field(ge=1)
    """Samples of each of these steps, over all ranks."""
    steps: int = Field(ge=1)
    """How many steps take that many."""


@dataclass(frozen=True)
class BatchSizes:
    """`global_batch` = `micro_batch` × `accumulation` × world size, in samples, once the warm-up is over."""

    global_batch: int
    micro_batch: int
    accumulation: int
    schedule: BatchSchedule
    """The global batch of every step."""

    def global_batch_at(self, step: int) -> int:
        """Samples of the step that comes after `step` steps, over all ranks."""
        return self.schedule.batch_at(step)

    def accumulation_at(self, step: int) -> int:
        """Micro-batches that each rank makes for that step."""
        together = self.global_batch // self.accumulation
        return self.global_batch_at(step) // together

    def samples_before(self, step: int) -> int:
        """Samples of all steps before it: the number of its first one in the order."""
        return self.schedule.samples_before(step)

    def steps_left(self, step: int, steps: int) -> float:
        """How many steps of the batch just used, number `step`, are as many samples as there are up to `steps`."""
        return (self.samples_before(steps) - self.samples_before(step)) / self.global_batch_at(max(0, step - 1))


def batch_sizes(source: str, tree: dict[str, Any], world_size: int) -> BatchSizes:
    """What the JSON's keys come to on `world_size` ranks; ConfigError names the file, the key and the way out."""
    global_batch, limit = (
        _positive(source, tree, key) for key in ("train_batch_size", "train_micro_batch_size_per_gpu")
    )
    stages = _stages(source, tree.get("batch_warmup", []))
    named = {f"batch_warmup[{at}].train_batch_size": stage.batch for at, stage in enumerate(stages)}
    for key, batch in {**named, "train_batch_size": global_batch}.items():
        if batch % world_size:
            common = math.gcd(global_batch, *named.values())
            raise ConfigError(
                f"{source}: {key} {batch} cannot be divided among {world_size} ranks; "
                f"start {_ranks_near(world_size, common)} ranks, or change {key}"
            )
    share = global_batch // world_size
    micro_batch = micro_batch_for(math.gcd(share, *(batch // world_size for batch in named.values())), limit)
    accumulation = tree.get("gradient_accumulation_steps")
    if accumulation is not None and accumulation * micro_batch != share:
        raise ConfigError(
            f"{source}: gradient_accumulation_steps {accumulation} × micro-batch {micro_batch} × {world_size} ranks is "
            f"not train_batch_size {global_batch}; leave gradient_accumulation_steps out, it follows"
        )
    return BatchSizes(global_batch, micro_batch, share // micro_batch, BatchSchedule(global_batch, stages))


def micro_batch_for(share: int, limit: int) -> int:
    """The largest divisor of a rank's share of the batch that is not above `limit`."""
    return next(size for size in range(min(share, limit), 0, -1) if share % size == 0)


def _stages(source: str, written: Any) -> tuple[Stage, ...]:
    if not isinstance(written, list) or not all(isinstance(stage, dict) for stage in written):
        raise ConfigError(
            f"{source}: batch_warmup = {written!r} is not a list of stages; "
            'write [{"train_batch_size": 4096, "steps": 1000}]'
        )
    read = [build(WarmupStage, stage, f"{source}: batch_warmup[{at}]") for at, stage in enumerate(written)]
    return tuple(Stage(stage.train_batch_size, stage.steps) for stage in read)


def _positive(source: str, tree: dict[str, Any], key: str) -> int:
    value = tree.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{source}: {key} = {value!r} is not a positive number of samples; write one")
    return value


def _ranks_near(world_size: int, batch: int) -> str:
    """The numbers of ranks below and above that divide a batch."""
    sizes = [size for size in range(1, batch + 1) if batch % size == 0]
    below = max(size for size in sizes if size < world_size)
    above = min((size for size in sizes if size > world_size), default=None)
    return f"{below} or {above}" if above else f"{below}"
