"""The one table of metrics, and the one function that fills it from events.

The exporter, the reference in the docs, and the test that no rule or dashboard names a metric that does not exist all
read `TABLE`. Conventions are Prometheus's own: one prefix, base units at the end of the name, `_total` for counters,
`_info` for facts, timestamps instead of ages. Every series also carries the label `run`.

What is not known is absent, never 0: a last save at second 0 would alarm at once, and so would a loss scale of 0 in a
run without fp16. Counters are there from the start with 0, because a rate needs two points.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Literal, NamedTuple

from nezha_ds.observe.events import Copy, Evaluation, Event, Record, Save, Snapshot, Start, Stop, Trouble

Kind = Literal["counter", "gauge", "histogram", "info"]

PHASES: tuple[str, ...] = ("data_wait", "forward", "backward", "optimizer", "evaluation", "checkpoint")
OBJECTIVES = ("mlm", "nsp", "sop", "span")
LOSSES = ("total", *OBJECTIVES)
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
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

TABLE: tuple[Metric, ...] = (
    Metric(
        "nezha_build_info",
        "info",
        "Versions of the package and of what it stands on",
        labels={"version": ANY, "deepspeed": ANY, "torch": ANY},
        per="node",
    ),
    Metric(
        "nezha_run_info",
        "info",
        "Facts of the run that do not change while it lasts",
        labels={"model": ANY, "precision": ANY, "zero_stage": ANY, "job_id": ANY},
        per="node",
    ),
    Metric("nezha_run_start_timestamp_seconds", "gauge", "Start of this attempt"),
    Metric("nezha_run_world_size", "gauge", "Ranks in the run"),
    Metric("nezha_train_global_step", "gauge", "Optimizer steps done, across restarts; may go back after one"),
    Metric("nezha_train_target_steps", "gauge", "The step at which the run is done"),
    Metric("nezha_train_last_step_timestamp_seconds", "gauge", "End of the last logged step", per="node"),
    Metric("nezha_train_steps_total", "counter", "Optimizer steps run by this attempt"),
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
        "Share of the devices' peak that steps reached since the last log step (MFU); absent where it is not known",
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
    ),
    Metric(
        "nezha_train_accuracy_ratio",
        "gauge",
        "Share of predictions that were right since the last log step",
        labels={"objective": OBJECTIVES},
    ),
    Metric(
        "nezha_train_predictions_total",
        "counter",
        "Predictions made by this attempt: masked tokens, or pairs",
        labels={"objective": OBJECTIVES},
    ),
    Metric("nezha_train_grad_norm", "gauge", "Global gradient norm before clipping; absent where it is not computed"),
    Metric(
        "nezha_lamb_weight_norm",
        "gauge",
        "Norm of a tensor at the last update by LAMB, over the tensors of a part of the model",
        labels={"part": PARTS, "quantile": QUANTILES},
    ),
    Metric(
        "nezha_lamb_update_norm",
        "gauge",
        "Norm of a tensor's update before ratio and learning rate, likewise",
        labels={"part": PARTS, "quantile": QUANTILES},
    ),
    Metric(
        "nezha_lamb_trust_ratio",
        "gauge",
        "Trust ratio of a tensor after its bounds, likewise",
        labels={"part": PARTS, "quantile": QUANTILES},
    ),
    Metric("nezha_train_learning_rate", "gauge", "Learning rate"),
    Metric("nezha_train_loss_scale", "gauge", "Dynamic loss scale; absent without fp16"),
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
    ),
    Metric(
        "nezha_data_source_tokens_total",
        "counter",
        "Text tokens trained on by this attempt, by source; without special ones",
        labels={"source": ANY},
    ),
    Metric("nezha_data_masked_ratio", "gauge", "Achieved mask rate of this attempt"),
    Metric("nezha_data_fetched_bytes_total", "counter", "Bytes of shards that came from a store"),
    Metric("nezha_data_fetch_retries_total", "counter", "Requests to a store that had to be made again"),
    Metric(
        "nezha_eval_loss",
        "gauge",
        "Loss of the last evaluation, in nats",
        labels={"split": ANY, "objective": LOSSES},
    ),
    Metric(
        "nezha_eval_accuracy_ratio",
        "gauge",
        "Share of predictions that were right in the last evaluation",
        labels={"split": ANY, "objective": OBJECTIVES},
    ),
    Metric(
        "nezha_eval_predictions",
        "gauge",
        "Predictions of the last evaluation",
        labels={"split": ANY, "objective": OBJECTIVES},
    ),
    Metric(
        "nezha_eval_nonfinite_loss_total",
        "counter",
        "Evaluations whose loss was NaN or infinite",
        labels={"split": ANY},
    ),
    Metric("nezha_eval_last_timestamp_seconds", "gauge", "End of the last evaluation", labels={"split": ANY}),
    Metric(
        "nezha_checkpoint_saves_total",
        "counter",
        "Checkpoints by outcome",
        labels={"result": ("success", "failure")},
    ),
    Metric("nezha_checkpoint_last_success_step", "gauge", "Step of the last checkpoint that was committed"),
    Metric("nezha_checkpoint_last_success_timestamp_seconds", "gauge", "When the last checkpoint was committed"),
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
    Metric("nezha_checkpoint_size_bytes", "gauge", "Bytes of the last checkpoint that was committed"),
    Metric("nezha_checkpoint_pending", "gauge", "Checkpoints that were begun and are not committed yet"),
    Metric("nezha_checkpoint_storage_free_bytes", "gauge", "Free on the disk of the checkpoints after the last one"),
    Metric("nezha_checkpoint_verify_failures_total", "counter", "Checkpoints that did not verify, old or just written"),
    Metric("nezha_checkpoint_fallbacks_total", "counter", "Starts that passed over a newer checkpoint"),
    Metric(
        "nezha_checkpoint_copies_total",
        "counter",
        "Copies of checkpoints to run.copy_to by outcome",
        labels={"result": ("success", "failure")},
    ),
    Metric("nezha_checkpoint_last_copy_step", "gauge", "Step of the last checkpoint that was copied"),
)

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in TABLE}


def values_of(event: Event) -> list[Value]:
    """What an event means in the table's terms."""
    match event:
        case Start():
            return list(_of_start(event))
        case Record():
            return list(_of_record(event))
        case Evaluation():
            return list(_of_evaluation(event))
        case Snapshot():
            return list(_of_snapshot(event))
        case Save():
            return list(_of_save(event))
        case Trouble():
            return list(_of_trouble(event))
        case Stop():
            return [Value("nezha_signals_total", 1, {"signal": event.signal})]
        case Copy():
            return list(_of_copy(event))


def _of_start(event: Start) -> Iterator[Value]:
    yield Value(
        "nezha_build_info",
        1.0,
        {"version": event.version, "deepspeed": event.deepspeed, "torch": event.torch},
    )
    facts = {"model": event.model, "precision": event.precision, "zero_stage": str(event.zero_stage)}
    yield Value("nezha_run_info", 1.0, {**facts, "job_id": event.job_id})
    yield Value("nezha_run_start_timestamp_seconds", event.time)
    yield Value("nezha_run_world_size", event.world_size)
    yield Value("nezha_train_global_step", event.step)
    yield Value("nezha_train_target_steps", event.target_steps)
    for source in event.sources:
        yield Value("nezha_data_source_tokens_total", 0, {"source": source})
    yield Value("nezha_checkpoint_verify_failures_total", event.passed_over)
    yield Value("nezha_checkpoint_fallbacks_total", int(event.passed_over > 0))


def _of_record(event: Record) -> Iterator[Value]:
    yield from _of_progress(event)
    yield from _of_numerics(event)
    yield from _of_lamb(event)
    for seconds in event.step_seconds:
        yield Value("nezha_train_step_duration_seconds", seconds)
    for phase, seconds in event.phase_seconds.items():
        yield Value("nezha_train_phase_seconds_total", seconds, {"phase": phase})


def _of_progress(event: Record) -> Iterator[Value]:
    yield Value("nezha_train_global_step", event.step)
    yield Value("nezha_train_last_step_timestamp_seconds", event.time)
    yield Value("nezha_train_steps_total", len(event.step_seconds))
    yield Value("nezha_train_samples_total", event.samples)
    yield Value("nezha_train_tokens_total", event.real_tokens, {"kind": "real"})
    yield Value("nezha_train_tokens_total", event.padding_tokens, {"kind": "padding"})
    yield Value("nezha_train_tokens_total", event.masked_tokens, {"kind": "masked"})
    yield Value("nezha_train_model_flops_total", event.model_flops)
    if event.flops_utilization is not None:
        yield Value("nezha_train_model_flops_utilization_ratio", event.flops_utilization)
    for source, tokens in event.source_tokens.items():
        yield Value("nezha_data_source_tokens_total", tokens, {"source": source})
    yield Value("nezha_data_epoch", event.epoch)
    yield Value("nezha_data_fetched_bytes_total", event.fetched_bytes)
    yield Value("nezha_data_fetch_retries_total", event.fetch_retries)


def _of_numerics(event: Record) -> Iterator[Value]:
    for objective, loss in {"total": event.loss, **event.losses}.items():
        yield Value("nezha_train_loss", loss, {"objective": objective})
    for objective, accuracy in event.accuracies.items():
        yield Value("nezha_train_accuracy_ratio", accuracy, {"objective": objective})
    for objective, count in event.predictions.items():
        yield Value("nezha_train_predictions_total", count, {"objective": objective})
    yield Value("nezha_train_learning_rate", event.learning_rate)
    if event.grad_norm is not None:
        yield Value("nezha_train_grad_norm", event.grad_norm)
    if event.loss_scale is not None:
        yield Value("nezha_train_loss_scale", event.loss_scale)
    yield Value("nezha_train_overflow_steps_total", event.skipped_steps)
    yield Value("nezha_data_masked_ratio", event.masked_ratio)


def _of_lamb(event: Record) -> Iterator[Value]:
    for part, measures in event.lamb.items():
        for measure, numbers in measures.items():
            for quantile, number in zip(QUANTILES, numbers, strict=True):
                yield Value(f"nezha_lamb_{measure}", number, {"part": part, "quantile": quantile})


def _of_evaluation(event: Evaluation) -> Iterator[Value]:
    for objective, loss in {"total": event.loss, **event.losses}.items():
        yield Value("nezha_eval_loss", loss, {"split": event.split, "objective": objective})
    for objective, accuracy in event.accuracies.items():
        yield Value("nezha_eval_accuracy_ratio", accuracy, {"split": event.split, "objective": objective})
    for objective, count in event.predictions.items():
        yield Value("nezha_eval_predictions", count, {"split": event.split, "objective": objective})
    yield Value("nezha_eval_nonfinite_loss_total", not isfinite(event.loss), {"split": event.split})
    yield Value("nezha_eval_last_timestamp_seconds", event.time, {"split": event.split})


def _of_snapshot(event: Snapshot) -> Iterator[Value]:
    yield Value("nezha_checkpoint_pending", 1)
    yield Value("nezha_checkpoint_save_duration_seconds", event.seconds, {"phase": "snapshot"})


def _of_save(event: Save) -> Iterator[Value]:
    yield Value("nezha_checkpoint_saves_total", 1, {"result": "success" if event.ok else "failure"})
    yield Value("nezha_checkpoint_pending", 0)
    yield Value("nezha_checkpoint_verify_failures_total", event.damaged)
    if event.ok:
        yield Value("nezha_checkpoint_last_success_step", event.step)
        yield Value("nezha_checkpoint_last_success_timestamp_seconds", event.time)
        yield Value("nezha_checkpoint_save_duration_seconds", event.seconds, {"phase": "persist"})
        yield Value("nezha_checkpoint_size_bytes", event.bytes)
    if event.free_bytes is not None:
        yield Value("nezha_checkpoint_storage_free_bytes", event.free_bytes)


def _of_copy(event: Copy) -> Iterator[Value]:
    yield Value("nezha_checkpoint_copies_total", 1, {"result": "success" if event.ok else "failure"})
    if event.ok:
        yield Value("nezha_checkpoint_last_copy_step", event.step)


def _of_trouble(event: Trouble) -> Iterator[Value]:
    yield Value("nezha_train_loss_spikes_total", event.what == "spike")
    yield Value("nezha_train_skipped_spikes_total", event.skipped)
    yield Value("nezha_train_nonfinite_loss_total", event.what == "loss")
    yield Value("nezha_train_nonfinite_gradient_total", event.what == "gradient")
