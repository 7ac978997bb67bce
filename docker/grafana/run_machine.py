"""One run: its speed, its data, its ranks, its checkpoints and its attempts."""

from common import RATE, STATE_NAMES, state_of
from panels import RED, Query, facts, series, timeline

ONE = 'RUN, rank=~"$rank"'

SPEED = [
    series(
        "Tokens a second",
        "Real, padding and masked tokens of all ranks in a second; masked ones are among the real ones.",
        "Real tokens fall by a fifth; padding is more than real text: another data.format would waste less.",
        Query(f"sum by (kind) (rate(nezha_train_tokens_total{{RUN}}{RATE}))", "{{kind}}"),
        least=0,
        alerts=["NezhaThroughputDrop"],
    ),
    series(
        "Phases of a step",
        "What a second is spent on, stacked; on a GPU where the host waits. What is missing to 100% is the rest.",
        "data_wait above a tenth; checkpoint or evaluation above a few hundredths.",
        Query(f"avg by (phase) (rate(nezha_train_phase_seconds_total{{RUN}}{RATE}))", "{{phase}}"),
        unit="percentunit",
        stack=True,
        least=0,
        most=1,
        alerts=["NezhaDataStarved", "NezhaOverheadHigh"],
    ),
    series(
        "Time of a step",
        "The middle step and the slowest of a hundred, without evaluations and saves.",
        "The two apart by more than a factor of two: something disturbs some steps.",
        *(
            Query(
                f"histogram_quantile({share}, sum by (le) "
                f"(rate(nezha_train_step_duration_seconds_bucket{{RUN}}{RATE})))",
                name,
            )
            for share, name in ((0.5, "p50"), (0.99, "p99"))
        ),
        unit="s",
        least=0,
    ),
    series(
        "MFU",
        "Share of the devices' peak that steps reach. Absent where the peak is not known, as on a CPU.",
        "Below 0.3 on a GPU, or down by a fifth.",
        Query("max by (run) (nezha_train_model_flops_utilization_ratio{RUN})", "MFU"),
        unit="percentunit",
        least=0,
        most=1,
    ),
    series(
        "Arithmetic",
        "Operations a second that the model's matrix products need, and those that all devices could make.",
        "The first falls while the second stays.",
        Query(f"sum(rate(nezha_train_model_flops_total{{RUN}}{RATE}))", "used"),
        Query("max(nezha_device_peak_flops_per_second{RUN})", "peak"),
        unit="flops",
        log=10,
    ),
    series(
        "Samples and steps a second",
        "Of all ranks, evaluations and saves included.",
        "Down by a fifth without a reason.",
        Query(f"sum(rate(nezha_train_samples_total{{RUN}}{RATE}))", "samples"),
        Query(f"sum(rate(nezha_train_steps_total{{RUN}}{RATE}))", "steps"),
        log=10,
    ),
]
"""How fast it is, and what a step's time goes to."""

DATA = [
    series(
        "Masked text",
        "Share of text tokens that had to be predicted, over this attempt. A broken pipeline shows here first.",
        "Away from the recipe's masking.rate by more than 0.01.",
        Query("max by (run) (nezha_data_masked_ratio{RUN})", "mask rate"),
        unit="percentunit",
        alerts=["NezhaMaskRateOff"],
    ),
    series(
        "Text of each source",
        "Text tokens a second by source, stacked: the mixture as it is trained on.",
        "Shares that are not those of the recipe's weights.",
        Query(f"sum by (source) (rate(nezha_data_source_tokens_total{{RUN}}{RATE}))", "{{source}}"),
        stack=True,
        least=0,
    ),
    series(
        "Epoch",
        "Passes over the data.",
        "It falls: the run went on from an older checkpoint. Many passes over little text: it is learned by heart.",
        Query("max by (run) (nezha_data_epoch{RUN})", "epoch"),
        unit="none",
    ),
    series(
        "Stalled steps",
        "Share of steps that waited for data for more than a tenth of their time, on rank 0.",
        "Above a few hundredths: raise data.cache_limit, use a faster disk, or give the ranks more cores.",
        Query(
            f"sum(rate(nezha_data_stalled_steps_total{{RUN}}{RATE})) "
            f"/ (sum(rate(nezha_train_steps_total{{RUN}}{RATE})) > 0)",
            "stalled",
        ),
        unit="percentunit",
        steps=[(0.1, RED)],
        least=0,
        most=1,
        alerts=["NezhaDataStarved"],
    ),
    series(
        "Batches ready",
        "Batches that lay ready in rank 0's loader at the last log step.",
        "0: the loader is slower than the device.",
        Query("max by (run) (nezha_data_prefetched_batches{RUN})", "batches"),
        unit="none",
        least=0,
    ),
    series(
        "Shards from a store",
        "Bytes a second that came from a store, and requests that had to be made again. 0 with shards on a disk.",
        "Retries that go on; bytes that do not end after the first epoch: data.cache_limit is too small.",
        Query(f"sum(rate(nezha_data_fetched_bytes_total{{RUN}}{RATE}))", "bytes a second"),
        Query(f"sum(increase(nezha_data_fetch_retries_total{{RUN}}{RATE}))", "retries"),
        unit="short",
        least=0,
        alerts=["NezhaFetchRetries"],
    ),
]
"""Whether the text comes, and whether it is the text that was meant."""

RANKS = [
    series(
        "Silence of ranks",
        "Seconds since each rank last got on: a step, a batch of an evaluation, a save.",
        "One that grows alone: its host or GPU hangs. All that grow together wait for one that is not shown.",
        Query(f"time() - max by (rank) (nezha_rank_last_heartbeat_timestamp_seconds{{{ONE}}})", "rank {{rank}}"),
        unit="s",
        steps=[(120, RED)],
        least=0,
        alerts=["NezhaRunStalled"],
    ),
    series(
        "Steps behind",
        "How many steps a rank is behind the foremost one; ranks meet at every step, so 0 or 1.",
        "More than 1 for longer than a scrape: it no longer takes part.",
        Query(
            f"scalar(max(nezha_rank_step{{RUN}})) - max by (rank) (nezha_rank_step{{{ONE}}})",
            "rank {{rank}}",
        ),
        unit="none",
        least=0,
    ),
    series(
        "Relative performance",
        "The fastest rank's computing time since the last log step as a share of this one's: 0.5 is half as fast.",
        "Below 0.75 for ten minutes: a hot or faulty GPU, or a host that does something else.",
        Query(f"min by (rank) (nezha_rank_relative_performance_ratio{{{ONE}}})", "rank {{rank}}"),
        unit="percentunit",
        least=0,
        most=1,
        alerts=["NezhaRankSlow"],
    ),
    series(
        "Computing",
        "Share of the time in which a rank computes; the rest are waits for data and for other ranks.",
        "One close to 100% while the others are not: all wait for that one.",
        Query(f"sum by (rank) (rate(nezha_rank_busy_seconds_total{{{ONE}}}{RATE}))", "rank {{rank}}"),
        unit="percentunit",
        least=0,
    ),
    series(
        "Memory",
        "Memory that a rank holds, and the most that it has held; on a GPU the device's, on a CPU the process's.",
        "The peak within a twentieth of the limit.",
        Query(f"max by (rank) (nezha_rank_memory_allocated_bytes{{{ONE}}})", "rank {{rank}}"),
        Query(f"max by (rank) (nezha_rank_memory_peak_bytes{{{ONE}}})", "rank {{rank}} most"),
        Query("min(nezha_rank_memory_limit_bytes{RUN})", "limit"),
        unit="bytes",
        least=0,
        alerts=["NezhaMemoryNearLimit"],
    ),
    series(
        "Allocations made again",
        "Allocations that had to free cached memory first. Absent on a CPU.",
        "Any that go on: memory is full, each costs a wait for the device, and the next may fail.",
        Query(f"sum by (rank) (increase(nezha_rank_allocator_retries_total{{{ONE}}}{RATE}))", "rank {{rank}}"),
        unit="none",
        least=0,
        alerts=["NezhaMemoryNearLimit"],
    ),
]
"""Which rank holds up all others; the variable `rank` chooses among them."""

CHECKPOINTS = [
    series(
        "Age of the last checkpoint",
        "Seconds since a checkpoint was committed: a saw, with a tooth a save.",
        "A tooth that does not end.",
        Query("time() - max by (run) (nezha_checkpoint_last_success_timestamp_seconds{RUN})", "age"),
        unit="s",
        steps=[(7200, RED)],
        least=0,
        alerts=["NezhaCheckpointStale"],
    ),
    series(
        "Steps saved",
        "The run's step, that of the last checkpoint, and that of its last copy in run.copy_to, where that is set.",
        "Lines that part: saves or copies fail.",
        Query("max(nezha_train_global_step{RUN})", "run"),
        Query("max(nezha_checkpoint_last_success_step{RUN})", "checkpoint"),
        Query("max(nezha_checkpoint_last_copy_step{RUN})", "copy"),
        unit="none",
        alerts=["NezhaCheckpointFailing"],
    ),
    series(
        "Time of a save",
        "Mean over an hour: the snapshot, for which a step waits, and all until the checkpoint was committed.",
        "A snapshot beyond a few steps' time; a save longer than the time between two.",
        Query(
            "sum by (phase) (rate(nezha_checkpoint_save_duration_seconds_sum{RUN}[1h])) "
            "/ sum by (phase) (rate(nezha_checkpoint_save_duration_seconds_count{RUN}[1h]))",
            "{{phase}}",
        ),
        unit="s",
        points=True,
        least=0,
    ),
    series(
        "Size and room",
        "Bytes of the last checkpoint, and what is free on its disk.",
        "Room for fewer than three.",
        Query("max(nezha_checkpoint_size_bytes{RUN})", "checkpoint"),
        Query("min(nezha_checkpoint_storage_free_bytes{RUN})", "free"),
        unit="bytes",
        log=10,
        alerts=["NezhaCheckpointSpaceLow"],
    ),
    series(
        "Saves",
        "Checkpoints of this attempt that were committed, that failed, and that are being written.",
        "A failure: two in a row end the run.",
        Query("max by (result) (nezha_checkpoint_saves_total{RUN})", "{{result}}"),
        Query("max(nezha_checkpoint_pending{RUN})", "under way"),
        unit="none",
        least=0,
        alerts=["NezhaCheckpointFailing"],
    ),
    series(
        "Damage and copies",
        "Checkpoints that did not verify, starts that passed over one, and copies to run.copy_to by outcome.",
        "Any that is not a success: a disk or a store loses what was written.",
        Query("max(nezha_checkpoint_verify_failures_total{RUN})", "did not verify"),
        Query("max(nezha_checkpoint_fallbacks_total{RUN})", "passed over"),
        Query("max by (result) (nezha_checkpoint_copies_total{RUN})", "copy: {{result}}"),
        unit="none",
        least=0,
        alerts=["NezhaCheckpointDamaged", "NezhaCheckpointCopyFailing"],
    ),
]
"""What a crash would cost, and whether the next save will fit."""

ATTEMPTS = [
    timeline(
        "States by node",
        "What the first rank of each node was at.",
        "Nodes that differ for minutes; red; gaps, in which no exporter answered.",
        Query(state_of("instance"), "{{instance}}"),
        STATE_NAMES,
    ),
    series(
        "Attempts",
        "How often the run was started.",
        "A stair: a restart loop. After three attempts that saved nothing new it ends with exit code 77.",
        Query("max by (run) (nezha_run_attempt{RUN})", "attempts"),
        unit="none",
        least=0,
        alerts=["NezhaRestartLoop", "NezhaNoProgress"],
    ),
    series(
        "Steps done again",
        "Steps that earlier attempts had made beyond this one's first checkpoint: what a crash cost.",
        "More than train.save_every.",
        Query("max by (run) (nezha_train_replayed_steps_total{RUN})", "steps"),
        unit="none",
        least=0,
    ),
    series(
        "Signals",
        "Signals by which an attempt agreed to save and stop.",
        "SIGTERM that nobody sent: the node is drained, or the job's time is over.",
        Query(f"max by (signal) (max_over_time(nezha_signals_total{{RUN}}{RATE}))", "{{signal}}"),
        unit="none",
        least=0,
    ),
    facts(
        "Facts",
        "Model, precision, ZeRO stage and the scheduler's number for the job; versions by node.",
        "Versions that differ between nodes, or a precision that you did not choose.",
        Query("max by (run, model, precision, zero_stage, job_id) (nezha_run_info{RUN})"),
        Query("max by (run, instance, version, deepspeed, torch) (nezha_build_info{RUN})"),
    ),
]
"""Starts, signals, states and versions."""
