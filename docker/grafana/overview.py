"""All runs on one page: which are healthy, how far they are, and which one to open."""

from common import (
    JOB,
    OPEN_RUN,
    RUN_NAMES,
    SEVERAL_RUNS,
    STATE_NAMES,
    TO_CLUSTER,
    TO_RUN,
    TO_RUNBOOK,
    WATCHED,
    last_state,
    state_of,
    time_left,
)
from panels import RED, YELLOW, Column, Dashboard, Events, Query, Row, series, stat, table, timeline

NUMBERS = [
    stat(
        "Runs that train",
        "Runs that train, evaluate or save at this moment.",
        "Fewer than were started.",
        Query('count(max by (job, run) (nezha_run_state{RUN, state=~"training|evaluating|saving"}) == 1) or vector(0)'),
        width=4,
    ),
    stat(
        "Starting or stopping",
        "Runs on their way in or out.",
        "A run that stays here for more than half an hour: it compiles, waits for text or for a rank.",
        Query('count(max by (job, run) (nezha_run_state{RUN, state=~"starting|stopping"}) == 1) or vector(0)'),
        alerts=["NezhaStartStuck"],
        width=4,
    ),
    stat(
        "Failed or gone",
        "Runs that have failed within the last hour, or that were killed, and that nothing has started again.",
        "Any.",
        Query(f"count(({last_state()}) > 6) or vector(0)"),
        steps=[(1, RED)],
        alerts=["NezhaRunFailed", "NezhaRunVanished"],
        width=4,
    ),
    stat(
        "Alerts",
        "Alerts of these runs that fire now; the curves below tell which.",
        "Any: its heading in the runbook says what to do.",
        Query('count(ALERTS{RUN, alertstate="firing"}) or vector(0)'),
        steps=[(1, RED)],
        width=4,
    ),
    stat(
        "Ranks",
        "Ranks of all these runs together, which is how many GPUs they hold.",
        "More than belong to you.",
        Query("sum(max by (job, run) (nezha_run_world_size{RUN}))"),
        width=4,
    ),
    stat(
        "Tokens a second",
        "Real tokens, without padding, that all these runs train on in a second.",
        "A fall that no run's end explains.",
        Query('sum(rate(nezha_train_tokens_total{RUN, kind="real"}[$__rate_interval]))'),
        width=4,
    ),
]

BY = "by (job, run)"
RUNS = table(
    "Runs",
    "A line a run, for an hour beyond its end; its name leads to its own dashboard. Losses are in nats, speed is in "
    "real tokens a second, and a checkpoint's age is what a crash would cost now. Alerts are those that fire.",
    "A state in red, a last step older than a few steps take, an age beyond two hours, more attempts than restarts "
    "that you know of.",
    Column("State", last_state(), mappings=STATE_NAMES),
    Column("Step", f"max {BY} (nezha_train_global_step{{RUN}})", "none"),
    Column("Done", f"max {BY} (nezha_train_global_step{{RUN}} / nezha_train_target_steps{{RUN}})", "percentunit"),
    Column("Time left", time_left("job", "run"), "s"),
    Column("Loss", f'max {BY} (nezha_train_loss{{RUN, objective="total"}})', "none", decimals=3),
    Column(
        "Held-out loss",
        f'max {BY} (nezha_eval_loss{{RUN, objective="total", split="heldout"}})',
        "none",
        decimals=3,
    ),
    Column(
        "Tokens a second",
        f'sum {BY} (rate(nezha_train_tokens_total{{RUN, kind="real"}}[$__rate_interval]))',
        "short",
    ),
    Column("MFU", f"max {BY} (nezha_train_model_flops_utilization_ratio{{RUN}})", "percentunit"),
    Column(
        "Last step",
        f"time() - max {BY} (nezha_train_last_step_timestamp_seconds{{RUN}})",
        "s",
        [(120, YELLOW), (600, RED)],
    ),
    Column(
        "Last checkpoint",
        f"time() - max {BY} (nezha_checkpoint_last_success_timestamp_seconds{{RUN}})",
        "s",
        [(3600, YELLOW), (7200, RED)],
    ),
    Column("Attempt", f"max {BY} (nezha_run_attempt{{RUN}})", "none", [(2, YELLOW), (10, RED)]),
    Column(
        "Alerts",
        f'count {BY} (ALERTS{{RUN, alertstate="firing"}}) or 0 * max {BY} (nezha_run_attempt{{RUN}})',
        "none",
        [(1, RED)],
    ),
    links={"run": OPEN_RUN},
    alerts=WATCHED,
    height=9,
)

CURVES = [
    timeline(
        "States",
        "What each run was at.",
        "Red, a long blue (a start that does not end), or gaps, in which no exporter answered.",
        Query(state_of("job", "run"), "{{run}}"),
        STATE_NAMES,
        height=7,
    ),
    series(
        "Loss in training",
        "Mean loss since the last log step, in nats; of pretraining on Chinese about 10 at first.",
        "A curve that rises, or one that lies above that of a like run at the same step.",
        Query(f'max {BY} (nezha_train_loss{{RUN, objective="total"}})', "{{run}}"),
        unit="none",
    ),
    series(
        "Loss on held-out text",
        "Loss of the evaluations on held-out text, in nats.",
        "It rises while the loss in training falls: the text is learned by heart.",
        Query(f'max {BY} (nezha_eval_loss{{RUN, objective="total", split="heldout"}})', "{{run}}"),
        unit="none",
        points=True,
    ),
    series(
        "Progress",
        "Steps done as a share of all.",
        "A curve that lies flat, or falls back: steps after the last checkpoint are done again.",
        Query(f"max {BY} (nezha_train_global_step{{RUN}} / nezha_train_target_steps{{RUN}})", "{{run}}"),
        unit="percentunit",
        least=0,
        most=1,
    ),
    series(
        "Tokens a second",
        "Real tokens, without padding, that a run trains on in a second, evaluations and saves included.",
        "Down by a fifth for a quarter of an hour: look at the run's ranks and data.",
        Query(f'sum {BY} (rate(nezha_train_tokens_total{{RUN, kind="real"}}[$__rate_interval]))', "{{run}}"),
        stack=True,
        least=0,
    ),
    series(
        "Alerts",
        "Alerts that fire, by name and run; 0 where none does.",
        "Any above 0.",
        Query(
            'count by (alertname, run) (ALERTS{RUN, alertstate="firing"}) or on () vector(0)',
            "{{alertname}} {{run}}",
        ),
        unit="none",
        least=0,
    ),
    series(
        "Attempts",
        "How often a run was started.",
        "A stair: a restart loop. A run that comes no further ends with exit code 77 after three.",
        Query(f"max {BY} (nezha_run_attempt{{RUN}})", "{{run}}"),
        unit="none",
        least=0,
        alerts=["NezhaRestartLoop"],
    ),
]

OVERVIEW = Dashboard(
    uid="nezha-overview",
    title="NEZHA: all runs",
    answers="Which runs are there, are they healthy, how far are they, and which one needs a look?",
    selection=SEVERAL_RUNS,
    variables=[JOB, RUN_NAMES],
    links={"One run": TO_RUN, "Cluster": TO_CLUSTER, "Runbook": TO_RUNBOOK},
    rows=[Row("Now", [*NUMBERS, RUNS]), Row("Over time", CURVES)],
    events=[
        Events("Starts", "max by (job, run) (nezha_run_start_timestamp_seconds{RUN})", "blue", "{{run}} starts", True),
        Events("Alerts", 'max by (alertname, run) (ALERTS{RUN, alertstate="firing"})', "red", "{{alertname}} {{run}}"),
    ],
)
"""The dashboard `nezha-overview`."""
