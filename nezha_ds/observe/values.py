"""What an event, or the present moment, means in the terms of the table of metrics."""

from collections.abc import Iterator, Sequence
from math import isfinite

from nezha_ds.observe.events import Copy, Evaluation, Event, Record, Save, Snapshot, Start, Stop, Trouble
from nezha_ds.observe.metrics import QUANTILES, STATES, Value
from nezha_ds.observe.pulse import Beat


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
    yield Value("nezha_run_attempt", event.attempt)
    yield Value("nezha_run_world_size", event.world_size)
    yield Value("nezha_train_global_step", event.step)
    yield Value("nezha_train_target_steps", event.target_steps)
    yield Value("nezha_train_replayed_steps_total", event.replayed)
    for source in event.sources:
        yield Value("nezha_data_source_tokens_total", 0, {"source": source})
    yield Value("nezha_checkpoint_verify_failures_total", event.passed_over)
    yield Value("nezha_checkpoint_fallbacks_total", int(event.passed_over > 0))


def _of_record(event: Record) -> Iterator[Value]:
    yield from _of_progress(event)
    yield from _of_numerics(event)
    yield from _of_lamb(event)
    yield from _of_ranks(event)
    for seconds in event.step_seconds:
        yield Value("nezha_train_step_duration_seconds", seconds)
    for phase, seconds in event.phase_seconds.items():
        yield Value("nezha_train_phase_seconds_total", seconds, {"phase": phase})


def _of_progress(event: Record) -> Iterator[Value]:
    yield Value("nezha_train_global_step", event.step)
    yield Value("nezha_train_steps_total", len(event.step_seconds))
    yield Value("nezha_train_samples_total", event.samples)
    yield Value("nezha_train_tokens_total", event.real_tokens, {"kind": "real"})
    yield Value("nezha_train_tokens_total", event.padding_tokens, {"kind": "padding"})
    yield Value("nezha_train_tokens_total", event.masked_tokens, {"kind": "masked"})
    yield Value("nezha_train_model_flops_total", event.model_flops)
    if event.flops_utilization is not None:
        yield Value("nezha_train_model_flops_utilization_ratio", event.flops_utilization)
    if event.peak_flops is not None:
        yield Value("nezha_device_peak_flops_per_second", event.peak_flops)
    for source, tokens in event.source_tokens.items():
        yield Value("nezha_data_source_tokens_total", tokens, {"source": source})
    yield Value("nezha_data_epoch", event.epoch)
    yield Value("nezha_data_fetched_bytes_total", event.fetched_bytes)
    yield Value("nezha_data_fetch_retries_total", event.fetch_retries)
    yield Value("nezha_data_stalled_steps_total", event.stalled_steps)
    if event.prefetched_batches is not None:
        yield Value("nezha_data_prefetched_batches", event.prefetched_batches)


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


def _of_ranks(event: Record) -> Iterator[Value]:
    for rank, (seconds, relative) in enumerate(zip(event.rank_busy_seconds, event.relative_performance, strict=True)):
        yield Value("nezha_rank_busy_seconds_total", seconds, {"rank": str(rank)})
        yield Value("nezha_rank_relative_performance_ratio", relative, {"rank": str(rank)})
    for rank, memory in enumerate(event.rank_memory):
        yield Value("nezha_rank_memory_allocated_bytes", memory.allocated, {"rank": str(rank)})
        yield Value("nezha_rank_memory_peak_bytes", memory.peak, {"rank": str(rank)})
        yield Value("nezha_rank_memory_limit_bytes", memory.limit, {"rank": str(rank)})
        if memory.retries is not None:
            yield Value("nezha_rank_allocator_retries_total", memory.retries, {"rank": str(rank)})


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


def values_of_beats(beats: Sequence[Beat], own: Beat) -> list[Value]:
    """What the ranks of a node are at; `own` is that of its first, which stands for the node."""
    values = [Value("nezha_run_state", state == own.state, {"state": state}) for state in STATES]
    if own.stepped is not None:
        values.append(Value("nezha_train_last_step_timestamp_seconds", own.stepped))
    for beat in beats:
        values.append(Value("nezha_rank_last_heartbeat_timestamp_seconds", beat.time, {"rank": str(beat.rank)}))
        values.append(Value("nezha_rank_step", beat.step, {"rank": str(beat.rank)}))
    return values
