"""One run on one page, from whether it lives at the top down to what each rank and each checkpoint does."""

from common import JOB, RATE, STATE_NAMES, TO_CLUSTER, TO_OVERVIEW, TO_RUNBOOK, WATCHED, last_state, time_left
from panels import BAD_BELOW, GREEN, RED, YELLOW, Dashboard, Events, Query, Row, Variable, stat
from run_learning import LAMB, LEARNING, NUMERICS
from run_machine import ATTEMPTS, CHECKPOINTS, DATA, RANKS, SPEED

ONE_RUN = 'job="$job", run="$run"'

EVENTS = [
    Events("Starts", "max by (run) (nezha_run_start_timestamp_seconds{RUN})", "blue", "The run starts", True),
    Events(
        "Saves",
        "max by (run) (nezha_checkpoint_last_success_timestamp_seconds{RUN})",
        "green",
        "A checkpoint is committed",
        True,
    ),
    Events(
        "Failed saves",
        f'max by (run) (increase(nezha_checkpoint_saves_total{{RUN, result="failure"}}{RATE}))',
        "orange",
        "A checkpoint failed",
    ),
    # After a signal the attempt ends: often one scrape has seen it.
    Events("Signals", f"max by (signal) (max_over_time(nezha_signals_total{{RUN}}{RATE}))", "purple", "{{signal}}"),
    Events("Spikes", f"max by (run) (increase(nezha_train_loss_spikes_total{{RUN}}{RATE}))", "yellow", "A loss spike"),
    Events("Alerts", 'max by (alertname) (ALERTS{RUN, alertstate="firing"})', "red", "{{alertname}}"),
]
"""Counters need no `> 0`: Grafana marks only where a value is above 0."""

HEALTH = [
    stat(
        "State",
        "What the run is at, or how it ended within the last hour. Of several nodes the one that matters most.",
        "Failed; gone, when it was killed; starting for more than half an hour.",
        Query(last_state()),
        mappings=STATE_NAMES,
        none="no answer",
        alerts=["NezhaRunFailed", "NezhaRunVanished", "NezhaStartStuck"],
    ),
    stat(
        "Done",
        "Steps done as a share of all.",
        "The same as an hour ago.",
        Query("max(nezha_train_global_step{RUN} / nezha_train_target_steps{RUN})"),
        unit="percentunit",
        decimals=1,
    ),
    stat(
        "Time left",
        "Until the last step, at the present rate of steps, evaluations and saves included.",
        "More than the time that the job may take; nothing, when no steps are made.",
        Query(time_left("run")),
        unit="s",
    ),
    stat(
        "Since the last step",
        "Seconds since the last optimizer step ended.",
        "More than a few steps take. An evaluation or a save may explain a minute.",
        Query("time() - max(nezha_train_last_step_timestamp_seconds{RUN})"),
        unit="s",
        steps=[(120, YELLOW), (600, RED)],
        alerts=WATCHED,
    ),
    stat(
        "Loss",
        "Mean total loss since the last log step, in nats.",
        "Above that of the last hour; no number.",
        Query('max(nezha_train_loss{RUN, objective="total"})'),
        unit="none",
        decimals=3,
        alerts=["NezhaLossNotFinite"],
    ),
    stat(
        "Held-out loss",
        "Loss of the last evaluation on held-out text, in nats.",
        "It has risen since the evaluation before.",
        Query('max(nezha_eval_loss{RUN, objective="total", split="heldout"})'),
        unit="none",
        decimals=3,
    ),
    stat(
        "Alerts",
        "Alerts of this run that fire now, by name.",
        "Any: its heading in the runbook says what to do.",
        Query('count(ALERTS{RUN, alertstate="firing"}) or vector(0)'),
        steps=[(1, RED)],
    ),
    stat(
        "Attempt",
        "How often the run was started, this time included.",
        "More than the restarts that you know of.",
        Query("max(nezha_run_attempt{RUN})"),
        unit="none",
        steps=[(3, YELLOW), (10, RED)],
        alerts=["NezhaRestartLoop"],
    ),
]

SPEED_NOW = [
    stat(
        "Tokens a second",
        "Real tokens, without padding, that all ranks train on in a second.",
        "Down by a fifth without a reason.",
        Query(f'sum(rate(nezha_train_tokens_total{{RUN, kind="real"}}{RATE}))'),
        alerts=["NezhaThroughputDrop"],
    ),
    stat(
        "MFU",
        "Share of the devices' peak that steps reach, counting a plain BERT's matrix products.",
        "Below 0.3 on a GPU. Absent where the device's peak is not known, as on a CPU.",
        Query("max(nezha_train_model_flops_utilization_ratio{RUN})"),
        unit="percentunit",
        decimals=1,
    ),
    stat(
        "Waiting for data",
        "Share of the time in which the ranks' loop waits for batches.",
        "Above a tenth: GPUs stand still. `nezha-ds bench-loader` tells what the node could feed.",
        Query(f'avg(rate(nezha_train_phase_seconds_total{{RUN, phase="data_wait"}}{RATE}))'),
        unit="percentunit",
        steps=[(0.05, YELLOW), (0.1, RED)],
        decimals=1,
        alerts=["NezhaDataStarved"],
    ),
    stat(
        "Mask rate",
        "Share of text tokens that had to be predicted in this attempt.",
        "Away from the recipe's masking.rate by more than 0.01: the data is not what it was.",
        Query("max(nezha_data_masked_ratio{RUN})"),
        unit="percentunit",
        decimals=2,
    ),
    stat(
        "Ranks heard",
        "Ranks that have got on in the last two minutes, as a share of all.",
        "Below 100%: a rank hangs or is dead, and all others wait for it. An evaluation's batch or a save of two "
        "minutes looks the same.",
        Query(
            "(count(time() - nezha_rank_last_heartbeat_timestamp_seconds{RUN} < 120) or vector(0)) "
            "/ max(nezha_run_world_size{RUN})"
        ),
        unit="percentunit",
        steps=[(BAD_BELOW, RED), (1, GREEN)],
        decimals=0,
        alerts=["NezhaRunStalled", "NezhaRanksUnseen"],
    ),
    stat(
        "Slowest rank",
        "The fastest rank's computing time as a share of the slowest's.",
        "Below 0.75: every rank waits for one slow GPU or one busy host.",
        Query("min(nezha_rank_relative_performance_ratio{RUN})"),
        unit="percentunit",
        steps=[(BAD_BELOW, RED), (0.75, YELLOW), (0.9, GREEN)],
        decimals=0,
        alerts=["NezhaRankSlow"],
    ),
    stat(
        "Since the last checkpoint",
        "What a crash would cost now.",
        "More than two hours, or than you would like to lose.",
        Query("time() - max(nezha_checkpoint_last_success_timestamp_seconds{RUN})"),
        unit="s",
        steps=[(3600, YELLOW), (7200, RED)],
        alerts=["NezhaCheckpointStale"],
    ),
    stat(
        "Room for checkpoints",
        "How many more checkpoints the disk holds, by the size of the last one.",
        "Fewer than three: the next save may fail.",
        Query("min(nezha_checkpoint_storage_free_bytes{RUN} / nezha_checkpoint_size_bytes{RUN})"),
        unit="none",
        steps=[(BAD_BELOW, RED), (3, YELLOW), (10, GREEN)],
        decimals=0,
        alerts=["NezhaCheckpointSpaceLow"],
    ),
]

RUN = Dashboard(
    uid="nezha-run",
    title="NEZHA: one run",
    answers="Does this run learn, how fast is it, what holds it up, and what would a crash cost?",
    selection=ONE_RUN,
    variables=[
        Variable("job", JOB.metric, "job", JOB.means),
        Variable("run", 'nezha_run_info{job="$job"}', "run", "A run by its folder's name"),
        Variable(
            "rank",
            'nezha_rank_step{job="$job", run="$run"}',
            "rank",
            "Ranks that the panels of the row Ranks show",
            several=True,
        ),
    ],
    links={"All runs": TO_OVERVIEW, "Cluster": TO_CLUSTER, "Runbook": TO_RUNBOOK},
    rows=[
        Row("Now", [*HEALTH, *SPEED_NOW]),
        Row("Learning", LEARNING),
        Row("Numerics", NUMERICS),
        Row("Speed", SPEED),
        Row("LAMB", LAMB),
        Row("Data", DATA),
        Row("Ranks", RANKS),
        Row("Checkpoints", CHECKPOINTS),
        Row("Attempts", ATTEMPTS),
    ],
    events=EVENTS,
)
"""The dashboard `nezha-run`."""
