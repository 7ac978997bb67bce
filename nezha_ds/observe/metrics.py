"""The one table of metrics.

The exporter, the reference in the docs, and the test that no rule or dashboard names a metric that does not exist all
read `TABLE`; values.py fills it. Conventions are Prometheus's own: one prefix, base units at the end of the name,
`_total` for counters, `_info` for facts, timestamps instead of ages. Every series also carries the label `run`.

What is not known is absent, never 0: a last save at second 0 would alarm at once, and so would a loss scale of 0 in a
run without fp16. Counters are there from the start with 0, because a rate needs two points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram", "info"]

PHASES: tuple[str, ...] = ("data_wait", "forward", "backward", "optimizer", "evaluation", "checkpoint")
OBJECTIVES = ("mlm", "nsp", "sop", "span")
LOSSES = ("total", *OBJECTIVES)
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
STATES = ("starting", "training", "evaluating", "saving", "stopping", "done", "failed")
"""What a rank can be at; the last two are ends."""
PATHS = ("metrics", "healthz", "readyz", "other")
"""What a request to the exporter can ask for."""
PARTS = ("embeddings", "attention", "feed_forward", "heads", "vectors")
"""Of the model: its matrices by where they are, and all biases and LayerNorms together."""
QUANTILES = ("min", "median", "max")
UNITS = ("seconds", "ratio", "bytes")
ANY: tuple[str, ...] = ()
"""A label whose values are not known beforehand."""


@dataclass(frozen=True)
class Metric:
    """One family of series, by the name that a query uses."""

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Each label with all the values that it can take, or ANY."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, ascending, without +Inf."""
    per: Literal["run", "node"] = "run"
    """`run`: exported by rank 0 alone, so that sums over targets count once. `node`: by every node's exporter."""
    absent: str = ""
    """When there is no such series although the exporter answers; empty: never."""

    @property
    def unit(self) -> str:
        """The base unit that the name ends with, or nothing."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in UNITS if stem.endswith(f"_{unit}")), "")


class Value(NamedTuple):
    """A number for one series: a gauge is set to it, a counter grows by it, a histogram counts it."""

    name: str
    value: float
    labels: Mapping[str, str] = MappingProxyType({})


STEP_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
SAVE_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)

STARTED = "until the ranks have met and opened the text"
LOGGED = "until the first log step"
EVALUATED = "until the first evaluation"
SAVED = "until this attempt's first checkpoint"

TABLE: tuple[Metric, ...] = (
    Metric(
        "nezha_build_info",
        "info",
        "Versions of the package and of what it stands on",
        labels={"version": ANY, "deepspeed": ANY, "torch": ANY},
        per="node",
        absent=STARTED,
    ),
    Metric(
        "nezha_run_info",
        "info",
        "Facts of the run that do not change while it lasts",
        labels={"model": ANY, "precision": ANY, "zero_stage": ANY, "job_id": ANY},
        per="node",
        absent=STARTED,
    ),
    Metric("nezha_run_start_timestamp_seconds", "gauge", "Start of this attempt", absent=STARTED),
    Metric("nezha_run_attempt", "gauge", "How often the run was started, this time included", absent=STARTED),
    Metric(
        "nezha_run_state",
        "gauge",
        "1 for what the node's first rank is at, 0 for all else",
        labels={"state": STATES},
        per="node",
    ),
    Metric("nezha_run_world_size", "gauge", "Ranks in the run", absent=STARTED),
    Metric("nezha_train_global_step", "gauge", "Optimizer steps done; may go back after a restart", absent=STARTED),
    Metric("nezha_train_target_steps", "gauge", "The step at which the run is done", absent=STARTED),
    Metric(
        "nezha_train_last_step_timestamp_seconds",
        "gauge",
        "End of the last step of this attempt",
        per="node",
        absent="until this attempt's first step",
    ),
    Metric("nezha_train_steps_total", "counter", "Optimizer steps run by this attempt"),
    Metric(
        "nezha_train_replayed_steps_total",
        "counter",
        "Steps that earlier attempts had made beyond the checkpoint from which this one goes on",
    ),
    Metric("nezha_train_samples_total", "counter", "Samples trained on by this attempt"),
    Metric(
        "nezha_train_tokens_total",
        "counter",
        "Tokens trained on by this attempt; masked ones are among the real ones",
        labels={"kind": ("real", "padding", "masked")},
    ),
    Metric(
        "nezha_train_step_duration_seconds",
        "histogram",
        "Wall time of a step, without evaluations and saves",
        buckets=STEP_BUCKETS,
        per="node",
    ),
    Metric(
        "nezha_train_model_flops_total",
        "counter",
        "Operations of this attempt's samples, forward and backward, of all ranks; a plain BERT's matrix products",
    ),
    Metric(
        "nezha_train_model_flops_utilization_ratio",
        "gauge",
        "Share of the devices' peak that steps reached since the last log step (MFU)",
        absent=f"{LOGGED}, and where the peak of the devices is not known",
    ),
    Metric(
        "nezha_device_peak_flops_per_second",
        "gauge",
        "Operations a second that the devices of all ranks could make",
        absent=f"{LOGGED}, and where the peak of the devices is not known",
    ),
    Metric(
        "nezha_train_phase_seconds_total",
        "counter",
        "Wall time by phase; on a GPU, where the host waits",
        labels={"phase": PHASES},
        per="node",
    ),
    Metric(
        "nezha_train_loss",
        "gauge",
        "Mean loss since the last log step, in nats",
        labels={"objective": LOSSES},
        absent=LOGGED,
    ),
    Metric(
        "nezha_train_accuracy_ratio",
        "gauge",
        "Share of predictions that were right since the last log step",
        labels={"objective": OBJECTIVES},
        absent=LOGGED,
    ),
    Metric(
        "nezha_train_predictions_total",
        "counter",
        "Predictions made by this attempt: masked tokens, or pairs",
        labels={"objective": OBJECTIVES},
    ),
    Metric(
        "nezha_train_grad_norm",
        "gauge",
        "Global gradient norm before clipping",
        absent=f"{LOGGED}, and in fp32 without ZeRO",
    ),
    Metric(
        "nezha_lamb_weight_norm",
        "gauge",
        "Norm of a tensor at the last update by LAMB, over the tensors of a part of the model",
        labels={"part": PARTS, "quantile": QUANTILES},
        absent=f"{LOGGED}, and with another optimizer than LAMB",
    ),
    Metric(
        "nezha_lamb_update_norm",
        "gauge",
        "Norm of a tensor's update before ratio and learning rate, likewise",
        labels={"part": PARTS, "quantile": QUANTILES},
        absent=f"{LOGGED}, and with another optimizer than LAMB",
    ),
    Metric(
        "nezha_lamb_trust_ratio",
        "gauge",
        "Trust ratio of a tensor after its bounds, likewise",
        labels={"part": PARTS, "quantile": QUANTILES},
        absent=f"{LOGGED}, and with another optimizer than LAMB",
    ),
    Metric("nezha_train_learning_rate", "gauge", "Learning rate", absent=LOGGED),
    Metric("nezha_train_loss_scale", "gauge", "Dynamic loss scale", absent=f"{LOGGED}, and without fp16"),
    Metric("nezha_train_overflow_steps_total", "counter", "Steps whose update was dropped by an overflow"),
    Metric("nezha_train_loss_spikes_total", "counter", "Steps whose loss was far above those before it"),
    Metric("nezha_train_skipped_spikes_total", "counter", "Of them, those whose update was left out"),
    Metric("nezha_train_nonfinite_loss_total", "counter", "Steps whose loss was NaN or infinite; the run stops there"),
    Metric(
        "nezha_train_nonfinite_gradient_total",
        "counter",
        "Steps with a finite loss and NaN or infinite gradients, fp16's overflows not counted; the run stops there",
    ),
    Metric(
        "nezha_data_epoch",
        "gauge",
        "Passes over the data, with the part of the present one; of a mixture, samples by those of all its texts",
        absent=LOGGED,
    ),
    Metric(
        "nezha_data_source_tokens_total",
        "counter",
        "Text tokens trained on by this attempt, by source; without special ones",
        labels={"source": ANY},
        absent=STARTED,
    ),
    Metric("nezha_data_masked_ratio", "gauge", "Achieved mask rate of this attempt", absent=LOGGED),
    Metric("nezha_data_fetched_bytes_total", "counter", "Bytes of shards that came from a store"),
    Metric("nezha_data_fetch_retries_total", "counter", "Requests to a store that had to be made again"),
    Metric(
        "nezha_data_stalled_steps_total",
        "counter",
        "Steps of this attempt that waited for data for more than a tenth of their time, on the rank with most of them",
    ),
    Metric(
        "nezha_data_prefetched_batches",
        "gauge",
        "Batches that lay ready in rank 0's loader at the last log step",
        absent=LOGGED,
    ),
    Metric(
        "nezha_rank_last_heartbeat_timestamp_seconds",
        "gauge",
        "When a rank last got on: the end of a step, or the beginning of an evaluation's batch or of a save",
        labels={"rank": ANY},
        per="node",
        absent="for a rank that was not started, or that shares no memory with its node's first",
    ),
    Metric(
        "nezha_rank_step",
        "gauge",
        "Steps that a rank has done",
        labels={"rank": ANY},
        per="node",
        absent="for a rank that was not started, or that shares no memory with its node's first",
    ),
    Metric(
        "nezha_rank_busy_seconds_total",
        "counter",
        "Time of this attempt in which a rank computed, without its waits for data and for other ranks",
        labels={"rank": ANY},
        absent=LOGGED,
    ),
    Metric(
        "nezha_rank_relative_performance_ratio",
        "gauge",
        "The fastest rank's computing time since the last log step as a share of this one's: 0.5 is half as fast",
        labels={"rank": ANY},
        absent=LOGGED,
    ),
    Metric(
        "nezha_rank_memory_allocated_bytes",
        "gauge",
        "Memory that a rank holds on its device; on a CPU, of its process",
        labels={"rank": ANY},
        absent=LOGGED,
    ),
    Metric(
        "nezha_rank_memory_peak_bytes",
        "gauge",
        "The most that it has held in this attempt",
        labels={"rank": ANY},
        absent=LOGGED,
    ),
    Metric(
        "nezha_rank_memory_limit_bytes",
        "gauge",
        "What its device has; on a CPU, what its host or container has for all processes",
        labels={"rank": ANY},
        absent=LOGGED,
    ),
    Metric(
        "nezha_rank_allocator_retries_total",
        "counter",
        "Allocations that had to free cached memory first",
        labels={"rank": ANY},
        absent=f"{LOGGED}, and on a CPU",
    ),
    Metric(
        "nezha_eval_loss",
        "gauge",
        "Loss of the last evaluation, in nats",
        labels={"split": ANY, "objective": LOSSES},
        absent=EVALUATED,
    ),
    Metric(
        "nezha_eval_accuracy_ratio",
        "gauge",
        "Share of predictions that were right in the last evaluation",
        labels={"split": ANY, "objective": OBJECTIVES},
        absent=EVALUATED,
    ),
    Metric(
        "nezha_eval_predictions",
        "gauge",
        "Predictions of the last evaluation",
        labels={"split": ANY, "objective": OBJECTIVES},
        absent=EVALUATED,
    ),
    Metric(
        "nezha_eval_nonfinite_loss_total",
        "counter",
        "Evaluations whose loss was NaN or infinite",
        labels={"split": ANY},
        absent=EVALUATED,
    ),
    Metric(
        "nezha_eval_last_timestamp_seconds",
        "gauge",
        "End of the last evaluation",
        labels={"split": ANY},
        absent=EVALUATED,
    ),
    Metric(
        "nezha_checkpoint_saves_total", "counter", "Checkpoints by outcome", labels={"result": ("success", "failure")}
    ),
    Metric(
        "nezha_checkpoint_last_success_step", "gauge", "Step of the last checkpoint that was committed", absent=SAVED
    ),
    Metric(
        "nezha_checkpoint_last_success_timestamp_seconds",
        "gauge",
        "When the last checkpoint was committed",
        absent=SAVED,
    ),
    Metric(
        "nezha_checkpoint_save_duration_seconds",
        "histogram",
        "Wall time of a checkpoint by phase: the snapshot, for which a step waits, and all until it was committed",
        labels={"phase": ("snapshot", "persist")},
        buckets=SAVE_BUCKETS,
    ),
    Metric(
        "nezha_signals_total", "counter", "Signals by which this attempt agreed to stop", labels={"signal": SIGNALS}
    ),
    Metric("nezha_checkpoint_size_bytes", "gauge", "Bytes of the last checkpoint that was committed", absent=SAVED),
    Metric("nezha_checkpoint_pending", "gauge", "Checkpoints that were begun and are not committed yet", absent=SAVED),
    Metric(
        "nezha_checkpoint_storage_free_bytes",
        "gauge",
        "Free on the disk of the checkpoints after the last one",
        absent=SAVED,
    ),
    Metric("nezha_checkpoint_verify_failures_total", "counter", "Checkpoints that did not verify, old or just written"),
    Metric("nezha_checkpoint_fallbacks_total", "counter", "Starts that passed over a newer checkpoint"),
    Metric(
        "nezha_checkpoint_copies_total",
        "counter",
        "Copies of checkpoints to run.copy_to by outcome",
        labels={"result": ("success", "failure")},
    ),
    Metric(
        "nezha_checkpoint_last_copy_step",
        "gauge",
        "Step of the last checkpoint that was copied",
        absent="until this attempt's first copy",
    ),
    Metric(
        "nezha_exporter_collect_duration_seconds",
        "gauge",
        "Time that the last scrape took to be answered",
        per="node",
        absent="until the first scrape was answered",
    ),
    Metric(
        "nezha_exporter_requests_total",
        "counter",
        "Requests to the exporter by what they asked for and the status that they got",
        labels={"path": PATHS, "code": ANY},
        per="node",
        absent="until there was one of the kind",
    ),
    Metric(
        "nezha_exporter_refused_connections_total",
        "counter",
        "Connections that were closed without an answer because too many were open",
        per="node",
    ),
)

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in TABLE}
