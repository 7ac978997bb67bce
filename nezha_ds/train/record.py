"""A log step's record: what the steps since the last one did, over all ranks, in one round.

Every rank sends one row of numbers. Those of the first kind are added up, those of the second are told of each rank by
itself; in fp64, in which counts are exact up to 9e15. 0.1 ms for two ranks on a node; each sends 200 bytes.
"""

import time
from typing import TYPE_CHECKING

import torch

from nezha_ds.observe.events import RankMemory, Record
from nezha_ds.observe.meters import Taken
from nezha_ds.train.meter import LossMeter

if TYPE_CHECKING:
    from nezha_ds.train.loop import Job

NO_RETRIES = -1
"""Of a device whose allocator counts none."""


def make_record(job: "Job", step: int, meter: LossMeter) -> Record:
    """What the steps since the last record did, over all ranks; collective, and the one wait for the device."""
    taken = job.interval.take()
    added, own = meter.read() | _counts(job, taken), _of_this_rank(job, taken)
    row = torch.tensor([*added.values(), *own.values()], dtype=torch.float64)
    rows = job.ranks.rows(row)  # (ranks, numbers)
    sums = dict(zip(added, rows[:, : len(added)].sum(dim=0).tolist(), strict=True))
    ranks = dict(zip(own, rows[:, len(added) :].T.tolist(), strict=True))
    measured = meter.means(sums)
    samples, tokens = int(sums["samples"]), int(sums["tokens"])
    peak, batch = job.engine.peak_flops, job.engine.config.batch
    return Record(
        time=time.time(),
        step=step,
        epoch=batch.samples_before(step) / job.batches.plan_size,
        loss=measured.loss,
        losses=measured.losses,
        accuracies=measured.accuracies,
        predictions=measured.predictions,
        grad_norm=job.engine.grad_norm,
        lamb=job.engine.lamb_norms,
        learning_rate=job.engine.learning_rate,
        loss_scale=job.engine.loss_scale,
        skipped_steps=taken.counts.get("skipped", 0),
        samples=samples,
        steps_left=batch.steps_left(step, job.settings.steps),
        real_tokens=tokens,
        padding_tokens=int(sums["places"]) - tokens,
        masked_tokens=max(measured.predictions.get(name, 0) for name in ("mlm", "span")),
        source_tokens={name: int(sums[f"source/{name}"]) for name in job.batches.sources},
        masked_ratio=job.batches.statistics.mask_rate,
        fetched_bytes=int(sums["fetched"]),
        fetch_retries=int(sums["retries"]),
        model_flops=float(samples * job.sample_flops),
        peak_flops=peak and peak * job.ranks.world.world_size,
        seconds=taken.seconds,
        step_seconds=taken.step_seconds,
        phase_seconds=taken.phase_seconds,
        rank_busy_seconds=tuple(ranks["busy"]),
        rank_memory=_memories(ranks),
        stalled_steps=int(max(ranks["stalled"])),
        prefetched_batches=job.batches.ready,
    )


def _counts(job: "Job", taken: Taken) -> dict[str, float]:
    """What all ranks together did, by name: this rank's share."""
    fetched, retries = job.batches.take_fetched()
    counts = {name: taken.counts.get(name, 0) for name in ("samples", "tokens", "places")}
    sources = {f"source/{name}": tokens for name, tokens in job.batches.take_source_tokens().items()}
    return {**counts, "fetched": fetched, "retries": retries, **sources}


def _of_this_rank(job: "Job", taken: Taken) -> dict[str, float]:
    """What is told of each rank."""
    memory = job.memory.read()
    return {
        "busy": job.engine.busy.take(),
        "stalled": taken.stalled_steps,
        "allocated": memory.allocated,
        "peak": memory.peak,
        "limit": memory.limit,
        "allocator": NO_RETRIES if memory.retries is None else memory.retries,
    }


def _memories(ranks: dict[str, list[float]]) -> tuple[RankMemory, ...]:
    columns = (map(int, ranks[name]) for name in ("allocated", "peak", "limit", "allocator"))
    return tuple(
        RankMemory(allocated=allocated, peak=peak, limit=limit, retries=None if retries == NO_RETRIES else retries)
        for allocated, peak, limit, retries in zip(*columns, strict=True)
    )
