"""The loop, on one screen: accumulate, step, and then log, evaluate, save, stop where due.

A step draws its dropout from (seed, step, rank) and its samples from the step's number, so a run that was killed and
goes on from a checkpoint computes what it would have computed. The host waits for the device once a step, before the
update (guard.py), and at log steps.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nezha_ds.data.loader import Loader
from nezha_ds.errors import DivergedError
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.observe.events import Event, Observer, Stop
from nezha_ds.observe.meters import Interval
from nezha_ds.observe.pulse import Pulse
from nezha_ds.train.engine import Engine
from nezha_ds.train.evaluate import evaluate
from nezha_ds.train.guard import Attempt, Guard
from nezha_ds.train.ledger import Ledger
from nezha_ds.train.memory import Memory
from nezha_ds.train.meter import LossMeter, prediction_shares
from nezha_ds.train.preempt import StopFlag
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import TrainSettings
from nezha_ds.train.record import make_record
from nezha_ds.train.saver import Saver
from nezha_ds.train.watchdog import Watchdog


@dataclass
class Job:
    """Everything that `fit` works with."""

    engine: Engine
    ranks: Ranks
    batches: Loader
    heldout: Callable[[], Loader] | None
    """Makes the loader of an evaluation; None: there is nothing to evaluate on."""
    objective: ObjectiveSettings
    settings: TrainSettings
    observers: Sequence[Observer]
    stop: StopFlag
    guard: Guard
    """Looks at a step's losses and gradients before they are applied."""
    watchdog: Watchdog
    pulse: Pulse
    save: Saver
    """Called with a step it begins that step's checkpoint; collective."""
    memory: Memory
    sample_flops: int
    """What a sample costs forward and backward."""
    ledger: Ledger = field(default_factory=Ledger)
    """Notes the samples of each step; nothing unless `train.ledger` is set."""
    interval: Interval = field(default_factory=Interval)
    stopping: bool = False
    """Whether the ranks have agreed to stop."""

    def at(self, state: str, step: int) -> None:
        """Mark in the pulse what this rank begins; what it still does once the ranks stop is all stopping."""
        self.pulse.mark("stopping" if self.stopping else state, step)

    def tell(self, event: Event) -> None:
        """Hand an event to all observers of this rank."""
        for observer in self.observers:
            observer.update(event)


def fit(job: Job, step: int) -> bool:
    """Train from `step` on to `settings.steps`. False when a signal stopped the run before; its last save has begun."""
    settings, interval = job.settings, job.interval
    meter = LossMeter(job.objective)
    job.engine.module.train()
    if _stopping(job, step):
        return False
    while step < settings.steps:
        job.at("training", step)
        with job.watchdog.watching("a step"):
            with interval.step():
                train_step(job, step, meter)
            step += 1
            job.at("training", step)
            job.save.poll()
            last = step == settings.steps
            stopping = _stopping(job, step)
            if step % settings.log_every == 0 or last or stopping:
                job.tell(make_record(job, step, meter))
        if not stopping and _due(step, settings.eval_every, last):
            with interval.time("evaluation"), job.watchdog.watching("a batch of an evaluation"):
                stopping = not _evaluate(job, step)
        if step % settings.save_every == 0 or last or stopping:
            job.at("saving", step)
            with interval.time("checkpoint"), job.watchdog.watching("a save", slow=True):
                job.save(step)
                # A signal that came meanwhile has its save already.
                stopping = _stopping(job, step)
        if stopping and not last:
            return False
    return True


def train_step(job: Job, step: int, meter: LossMeter) -> None:
    """One optimizer step: every micro-batch forward and backward, then the update."""
    engine, interval = job.engine, job.interval
    engine.begin_step(step)
    torch.manual_seed(dropout_seed(job.settings.seed, step, engine.world.rank))
    with interval.time("data_wait"):
        batches = [next(job.batches) for _ in range(engine.config.batch.accumulation_at(step))]
    job.ledger.note(step, batches)
    shares = prediction_shares(batches, job.objective, job.ranks)
    totals: list[Tensor] = []
    for batch, share in zip(batches, shares, strict=True):
        interval.count(samples=batch.samples, places=batch.input_ids.numel(), tokens=int(batch.lengths.sum()))
        with engine.busy:
            moved = batch.to(engine.device)
            with interval.time("forward"):
                losses = pretraining_losses(engine(moved), moved, job.objective, share)
            with interval.time("backward"):
                engine.backward(losses.total)
        meter.add(losses)
        totals.append(losses.total.detach())
    with interval.time("optimizer"):
        if job.guard.check(Attempt(step, batches, shares, totals)):
            interval.count(skipped=not _update(job, step, meter))
        else:
            engine.drop_step()
    engine.busy.settle()


def _update(job: Job, step: int, meter: LossMeter) -> bool:
    """The update after `step` steps; False when an overflow skipped it.

    DivergedError where the loss scale can fall no further, told and saved as it was before the step.
    """
    try:
        return job.engine.step()
    except DivergedError as error:
        reason = str(error)
    if step % job.settings.log_every:
        job.tell(make_record(job, step, meter))
    if step % job.settings.save_every:  # else it is saved already, or the beginning
        job.save(step)
    saved = "what came before it is saved" if step else "nothing was trained yet"
    raise DivergedError(f"step {step + 1}: {reason}; {saved}")


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for a rank's step: three multiplications by odd constants keep neighbours apart."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (1 << 64) - 1
    return mixed >> 1


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)


def _stopping(job: Job, step: int) -> bool:
    """Whether the ranks agree to stop; the observers hear of it once. Collective."""
    if not job.stopping and (number := job.stop.agreed(job.ranks)):
        job.stopping = True
        job.at("stopping", step)
        job.tell(Stop(time=time.time(), step=step, signal=signal.Signals(number).name))
    return job.stopping


def _evaluate(job: Job, step: int) -> bool:
    """False when the ranks agreed to stop in the middle."""

    def between_batches() -> bool:
        job.watchdog.begin("a batch of an evaluation")
        job.at("evaluating", step)
        return _stopping(job, step)

    if job.heldout is None:
        return True
    job.at("evaluating", step)
    with job.heldout() as batches:
        events = evaluate(job.engine, batches, job.objective, job.ranks, step, between_batches)
    for event in events:
        job.tell(event)
    return bool(events)
