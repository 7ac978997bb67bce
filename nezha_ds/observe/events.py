"""What a run tells its observers: eight plain events, each handed to every observer.

The training loop builds an event where something is due (a start, a log step, an evaluation, a save, a trouble); the
journal, the console and the exporter each take what they need from the same one, so that the three can never disagree.
Events hold plain numbers only: whoever builds one has already paid for the device-to-host copy. Building one costs
about 5 µs.
"""

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict


class _Event(BaseModel):
    # NaN and infinities become the strings of protobuf's JSON mapping: bare NaN is not JSON, and null would make a loss
    # that exploded look like one that was never measured.
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True, protected_namespaces=()
    )

    time: float
    """When it happened, in seconds since 1970."""
    step: int
    """Optimizer steps done since the run's very first, across restarts."""


class RankMemory(BaseModel):
    """A rank's memory at a log step, in bytes: its device's, or on a CPU its process's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    allocated: int
    """What it holds now."""
    peak: int
    """The most that it has held in this attempt."""
    limit: int
    """What the device has; on a CPU, what the host or container has for all processes."""
    retries: int | None = None
    """Allocations since the last record that had to free cached memory first; None on a CPU."""


class Start(_Event):
    """The run begins, or goes on at `step` after a restart."""

    kind: Literal["start"] = "start"
    run: str
    """Name of the run: its folder's."""
    target_steps: int
    """The step at which it will be done."""
    world_size: int
    sources: tuple[str, ...] = ()
    """The names of the texts that it reads."""
    model: str
    """`base`, `large`, or whatever the recipe calls it."""
    precision: Literal["fp32", "fp16", "bf16"]
    zero_stage: int
    version: str
    """Versions of this package, of DeepSpeed and of torch."""
    deepspeed: str
    torch: str
    job_id: str = ""
    """The scheduler's number for the job, where there is one."""
    parent: str = ""
    """The checkpoint of another run from which this one began, where there was one."""
    passed_over: int = 0
    """Checkpoints newer than the one that the run goes on from, which did not verify."""
    attempt: int = 1
    """How often the run was started, this time included."""
    replayed: int = 0
    """Steps that earlier attempts had made beyond `step`, and that are made again."""


class Record(_Event):
    """A log step: what the steps since the last record did. Counts are sums over all ranks."""

    kind: Literal["record"] = "record"
    epoch: float
    """Passes over the data, with the part of the present one: 1.25 is a quarter into the second."""
    loss: float
    """Mean total loss over the interval, in nats."""
    losses: Mapping[str, float]
    """The same by objective: `mlm`, `nsp`, `sop`, `span`."""
    accuracies: Mapping[str, float]
    """Share of predictions that were right by objective, 0 to 1."""
    predictions: Mapping[str, int]
    """How many there were, by objective."""
    grad_norm: float | None
    """Global gradient norm before clipping at the last step; None where the engine does not compute it."""
    lamb: Mapping[str, Mapping[str, tuple[float, float, float]]] = {}
    """LAMB's last update: part of the model -> `weight_norm`, `update_norm` or `trust_ratio` -> smallest, median and
    largest of its tensors; empty with another optimizer."""
    learning_rate: float
    loss_scale: float | None
    """None without fp16."""
    skipped_steps: int
    """Steps of the interval whose update was dropped because a gradient overflowed."""
    samples: int
    steps_left: float | None = None
    """How many steps of the last one's batch are as many samples as are left; None: as many as there are."""
    real_tokens: int
    padding_tokens: int
    masked_tokens: int
    """Those of the real tokens that had to be predicted."""
    source_tokens: Mapping[str, int] = {}
    """Text tokens of each source, without special ones."""
    masked_ratio: float
    """Achieved mask rate since this attempt began, of text tokens: a broken pipeline shows here first."""
    fetched_bytes: int = 0
    """Of shards that came from a store."""
    fetch_retries: int = 0
    """Requests to the store that had to be made again."""
    model_flops: float = 0.0
    """Operations that the interval's samples cost forward and backward, as model/flops.py counts them."""
    peak_flops: float | None = None
    """Operations a second that all ranks' devices could make; None where that is not known."""
    seconds: float
    """Wall time since the last record, evaluations and saves included."""
    step_seconds: tuple[float, ...]
    """Wall time of each step of the interval, on the rank that writes."""
    phase_seconds: Mapping[str, float]
    """Wall time by phase (`metrics.PHASES`) on the same rank. On a GPU it tells where the host waits."""

    rank_busy_seconds: tuple[float, ...] = ()
    """Time in which each rank computed in the interval's steps, by rank: without waits for data and other ranks."""
    rank_memory: tuple[RankMemory, ...] = ()
    """By rank."""
    stalled_steps: int = 0
    """Steps that waited for data for more than a tenth of their time, on the rank where they were most."""
    prefetched_batches: int | None = None
    """Micro-batches that lay ready in the loader of the rank that writes."""

    @property
    def relative_performance(self) -> tuple[float, ...]:
        """The fastest rank's computing time as a share of each one's: 0.5 is half as fast. Empty where not measured."""
        busy = self.rank_busy_seconds
        return tuple(min(busy) / seconds if seconds else 1.0 for seconds in busy)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens of all ranks per second spent in steps."""
        busy = sum(self.step_seconds)
        return self.real_tokens / busy if busy else 0.0

    @property
    def flops_utilization(self) -> float | None:
        """Share of the devices' peak that steps reached (MFU); None where the peak is not known."""
        busy = sum(self.step_seconds)
        return self.model_flops / busy / self.peak_flops if busy and self.peak_flops else None

    @property
    def data_wait_ratio(self) -> float:
        """Share of the wall time spent waiting for data."""
        return self.phase_seconds.get("data_wait", 0.0) / self.seconds if self.seconds else 0.0


class Evaluation(_Event):
    """A pass over held-out samples."""

    kind: Literal["evaluation"] = "evaluation"
    split: str
    """`heldout`, or `heldout/NAME` for one of several sources."""
    loss: float
    losses: Mapping[str, float]
    accuracies: Mapping[str, float]
    predictions: Mapping[str, int]
    seconds: float

    @property
    def mlm_accuracy(self) -> float:
        """Share of masked tokens that were predicted, 0 to 1; 0 where none were to be."""
        return self.accuracies.get("mlm", 0.0)


class Snapshot(_Event):
    """A checkpoint begins: what it needs was copied to the host, and is now being written."""

    kind: Literal["snapshot"] = "snapshot"
    seconds: float
    """That the step waited for it."""


class Save(_Event):
    """A checkpoint that was committed, or the failure to write one."""

    kind: Literal["save"] = "save"
    ok: bool
    seconds: float
    """From its snapshot on, also while steps were made."""
    bytes: int = 0
    free_bytes: int | None = None
    """On the disk that it lies on."""
    damaged: int = 0
    """1 when it was written and did not verify."""


class Trouble(_Event):
    """A step whose loss or gradients are not as they should be, told when it happens."""

    kind: Literal["trouble"] = "trouble"
    what: Literal["spike", "loss", "gradient"]
    """A loss far above those before it; a loss, or a gradient, that is no number."""
    value: float
    """The loss in nats, or the norm of the gradients."""
    limit: float
    """Above this a loss is a spike."""
    skipped: bool = False
    """Whether the step's update was left out."""


class Stop(_Event):
    """The ranks agreed to stop because one was told to; what is trained is saved next."""

    kind: Literal["stop"] = "stop"
    signal: str
    """`SIGTERM`, `SIGINT` or `SIGUSR1`."""


class Copy(_Event):
    """A checkpoint that was copied to the store, or the failure to."""

    kind: Literal["copy"] = "copy"
    ok: bool
    seconds: float
    bytes: int = 0


Event: TypeAlias = Start | Record | Evaluation | Snapshot | Save | Copy | Stop | Trouble


class Observer(Protocol):
    """What the journal, the console and the exporter have in common."""

    def update(self, event: Event) -> None:
        """Take one event. Never raises for reasons outside the program: a full disk must not end a run."""
        ...

    def close(self) -> None:
        """Finish; later updates are errors."""
        ...
