"""The machines under all runs: which nodes answer, who is slow, what is full."""

from common import JOB, OPEN_RUN, RATE, RUN_NAMES, SEVERAL_RUNS, STATE_NAMES, TO_OVERVIEW, TO_RUN, TO_RUNBOOK, state_of
from panels import (
    GREEN,
    RED,
    YELLOW,
    Column,
    Dashboard,
    Events,
    Query,
    Row,
    Variable,
    named,
    series,
    stat,
    table,
    timeline,
)

UP = 'up{job=~"$job", instance=~"$node"}'
NODE = 'RUN, instance=~"$node"'

NUMBERS = [
    stat(
        "Nodes that answer",
        "Exporters, one a node and run, that answered Prometheus' last scrape.",
        "Fewer than nodes that train.",
        Query(f"sum({UP}) or vector(0)"),
        width=4,
    ),
    stat(
        "Nodes that do not",
        "Exporters that Prometheus knows of and that do not answer: a run that crashed leaves its address behind.",
        "Any, unless its run has ended.",
        Query(f"count({UP} == 0) or vector(0)"),
        steps=[(1, RED)],
        alerts=["NezhaExporterDown"],
        width=4,
    ),
    stat(
        "Runs",
        "Runs that show themselves.",
        "Fewer than were started.",
        Query("count(count by (job, run) (nezha_run_info{RUN})) or vector(0)"),
        width=4,
    ),
    stat(
        "Ranks expected",
        "World sizes of all runs together.",
        "More than belong to you.",
        Query("sum(max by (job, run) (nezha_run_world_size{RUN}))"),
        width=4,
    ),
    stat(
        "Ranks heard",
        "Ranks that have got on in the last two minutes.",
        "Fewer than are expected.",
        Query("count(time() - nezha_rank_last_heartbeat_timestamp_seconds{RUN} < 120) or vector(0)"),
        alerts=["NezhaRunStalled", "NezhaRanksUnseen"],
        width=4,
    ),
    stat(
        "Tokens a second",
        "Real tokens, without padding, that all runs train on in a second.",
        "A fall that no run's end explains.",
        Query(f'sum(rate(nezha_train_tokens_total{{RUN, kind="real"}}{RATE}))'),
        width=4,
    ),
]

BY = "by (job, run, instance)"
NODES = table(
    "Nodes",
    "A line a node and run. Ranks are those that the node's exporter tells of; silence is that of the most silent.",
    "A state in red, a step behind that of the run's other nodes, a silence beyond two minutes.",
    Column("State", state_of("job", "run", "instance"), mappings=STATE_NAMES),
    Column("Ranks", f"count {BY} (nezha_rank_step{{{NODE}}})", "none"),
    Column("Step", f"min {BY} (nezha_rank_step{{{NODE}}})", "none"),
    Column(
        "Silence",
        f"time() - min {BY} (nezha_rank_last_heartbeat_timestamp_seconds{{{NODE}}})",
        "s",
        [(60, YELLOW), (120, RED)],
    ),
    Column(
        "Last step",
        f"time() - max {BY} (nezha_train_last_step_timestamp_seconds{{{NODE}}})",
        "s",
        [(120, YELLOW), (600, RED)],
    ),
    Column(
        "Waiting for data",
        # A rate remembers the exporters of an attempt before.
        f'avg {BY} (rate(nezha_train_phase_seconds_total{{{NODE}, phase="data_wait"}}{RATE})) '
        f"and on (job, run, instance) nezha_build_info{{{NODE}}}",
        "percentunit",
        [(0.05, YELLOW), (0.1, RED)],
    ),
    links={"run": OPEN_RUN},
    alerts=["NezhaRunStalled", "NezhaStepStalled"],
)

OVER_TIME = [
    timeline(
        "Exporters that answer",
        "Each exporter: whether it answered.",
        "Red while its run trains.",
        Query(UP, "{{instance}}"),
        named({0: ("silent", RED), 1: ("answers", GREEN)}),
        width=12,
        height=8,
    ),
    series(
        "Ranks by run",
        "World size of each run, stacked: who holds how many GPUs.",
        "A run that comes back with fewer.",
        Query("max by (job, run) (nezha_run_world_size{RUN})", "{{run}}"),
        unit="none",
        stack=True,
        least=0,
        width=12,
    ),
    series(
        "Ranks that are missing",
        "World size less the ranks of which some exporter tells.",
        "Above 0 for three minutes: a node is gone, and the others wait for it.",
        Query("max by (job, run) (nezha_run_world_size{RUN}) - count by (job, run) (nezha_rank_step{RUN})", "{{run}}"),
        unit="none",
        steps=[(1, RED)],
        alerts=["NezhaRanksUnseen"],
    ),
    series(
        "Tokens a second by run",
        "Real tokens, without padding, stacked.",
        "One that falls by a fifth; all that fall together: network or storage.",
        Query(f'sum by (job, run) (rate(nezha_train_tokens_total{{RUN, kind="real"}}{RATE}))', "{{run}}"),
        stack=True,
        least=0,
    ),
    series(
        "Signals",
        "Signals by which runs agreed to save and stop.",
        "Many at one time: the scheduler drains the cluster.",
        Query(f"max by (run, signal) (max_over_time(nezha_signals_total{{RUN}}{RATE}))", "{{run}} {{signal}}"),
        unit="none",
        least=0,
    ),
]

SLOW = [
    series(
        "The ten slowest ranks",
        "The fastest rank's computing time as a share of theirs: 0.5 is half as fast.",
        "Below 0.75 for ten minutes. The same rank in several runs: take its node out.",
        Query("bottomk(10, nezha_rank_relative_performance_ratio{RUN})", "{{run}} rank {{rank}}"),
        unit="percentunit",
        least=0,
        most=1,
        alerts=["NezhaRankSlow"],
    ),
    series(
        "The ten most silent ranks",
        "Seconds since they last got on.",
        "Above 120.",
        Query(
            f"topk(10, time() - nezha_rank_last_heartbeat_timestamp_seconds{{{NODE}}})",
            "{{run}} rank {{rank}} on {{instance}}",
        ),
        unit="s",
        steps=[(120, RED)],
        least=0,
        alerts=["NezhaRunStalled", "NezhaClockAhead"],
    ),
    series(
        "Time of a step by node",
        "The middle step as each node's first rank sees it.",
        "Nodes apart: clocks or hosts, for ranks of a run wait for each other at every step.",
        Query(
            "histogram_quantile(0.5, sum by (run, instance, le) "
            f"(rate(nezha_train_step_duration_seconds_bucket{{{NODE}}}{RATE})))",
            "{{run}} {{instance}}",
        ),
        unit="s",
        least=0,
    ),
]

FULL = [
    series(
        "Memory of the ten fullest ranks",
        "The most memory that they have held as a share of the device's; on a CPU, of the host's.",
        "Above 0.95 with allocations made again: a longer batch may fail.",
        Query(
            "topk(10, nezha_rank_memory_peak_bytes{RUN} / nezha_rank_memory_limit_bytes{RUN})",
            "{{run}} rank {{rank}}",
        ),
        unit="percentunit",
        steps=[(0.95, RED)],
        least=0,
        most=1,
        alerts=["NezhaMemoryNearLimit"],
    ),
    series(
        "Free for checkpoints",
        "What is free on the disk of each run's checkpoints.",
        "It falls in a straight line towards 0.",
        Query("min by (job, run) (nezha_checkpoint_storage_free_bytes{RUN})", "{{run}}"),
        unit="bytes",
        least=0,
        alerts=["NezhaCheckpointSpaceLow"],
    ),
    series(
        "Room for checkpoints",
        "How many more checkpoints the disk holds, by the size of the last one.",
        "Fewer than three.",
        Query(
            "min by (job, run) (nezha_checkpoint_storage_free_bytes{RUN} / nezha_checkpoint_size_bytes{RUN})",
            "{{run}}",
        ),
        unit="none",
        log=10,
        alerts=["NezhaCheckpointSpaceLow"],
    ),
]

EXPORTERS = [
    series(
        "Time of a scrape",
        "As Prometheus sees it, and as the exporter does.",
        "Above 0.1 s: the host has no core left for it, or somebody else asks too often.",
        Query('max by (instance) (scrape_duration_seconds{job=~"$job", instance=~"$node"})', "{{instance}}"),
        Query(f"max by (instance) (nezha_exporter_collect_duration_seconds{{{NODE}}})", "{{instance}} itself"),
        unit="s",
        least=0,
        alerts=["NezhaExporterSlow"],
    ),
    series(
        "Requests",
        "Requests a second by what they ask for and the status that they get.",
        "Code 401: a wrong password, or somebody without one; `other`: somebody looks round.",
        Query(f"sum by (path, code) (rate(nezha_exporter_requests_total{{{NODE}}}{RATE}))", "{{path}} {{code}}"),
        unit="reqps",
        least=0,
        alerts=["NezhaExporterUnauthorized"],
    ),
    series(
        "Refused connections",
        "Connections that were closed at once because too many were open.",
        "Any: somebody floods the port. Training does not feel it.",
        Query(
            f"sum by (instance) (increase(nezha_exporter_refused_connections_total{{{NODE}}}{RATE}))",
            "{{instance}}",
        ),
        unit="none",
        least=0,
        alerts=["NezhaExporterRefuses"],
    ),
]

CLUSTER = Dashboard(
    uid="nezha-cluster",
    title="NEZHA: cluster",
    answers="Which nodes answer, which rank or node is slow or silent, and what runs full?",
    selection=SEVERAL_RUNS,
    variables=[
        JOB,
        RUN_NAMES,
        Variable("node", 'up{job=~"$job"}', "instance", "Nodes, by the address of their exporter", several=True),
    ],
    links={"All runs": TO_OVERVIEW, "One run": TO_RUN, "Runbook": TO_RUNBOOK},
    rows=[
        Row("Now", [*NUMBERS, NODES]),
        Row("Nodes", OVER_TIME),
        Row("Who is slow", SLOW),
        Row("What runs full", FULL),
        Row("Exporters", EXPORTERS),
    ],
    events=[
        Events("Starts", "max by (job, run) (nezha_run_start_timestamp_seconds{RUN})", "blue", "{{run}} starts", True),
        Events(
            "Signals",
            f"max by (run, signal) (max_over_time(nezha_signals_total{{RUN}}{RATE}))",
            "purple",
            "{{signal}} to {{run}}",
        ),
    ],
)
"""The dashboard `nezha-cluster`."""
