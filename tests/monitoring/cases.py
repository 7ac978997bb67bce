"""What each alert is held to: series that fire it, and series as near as can be that do not.

Each case is a healthy run with something changed, and names all alerts that fire at a minute, and no others. Those that
do not are most often the trap: a run that ended well, a restart, a NaN, a counter that began again, a second run. `x…`
is for as long as the case lasts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.monitoring.healthy import at_work, ended


@dataclass(frozen=True)
class Case:
    """One look at one run."""

    about: str
    """The alert."""
    name: str
    changes: Mapping[str, str | None]
    at: int
    """The minute at which is looked."""
    fires: tuple[str, ...] = ()
    """`NAME` or `NAME{LABEL="VALUE"}` beside job, run and severity: exactly those that fire."""
    other: Mapping[str, str | None] | None = field(default=None)
    """A second run `other` of the same job, where there is one: nothing of it fires."""


HEARTS = (
    'nezha_rank_last_heartbeat_timestamp_seconds{rank="0"}',
    'h1 nezha_rank_last_heartbeat_timestamp_seconds{rank="1"}',
)
STATE = "nezha_run_state"
DURATION = "nezha_train_step_duration_seconds"
PHASE = "nezha_train_phase_seconds_total"
LOSS = 'nezha_train_loss{objective="total"}'
EVALUATION = 'nezha_eval_loss{split="heldout",objective="total"}'
SAVES = 'nezha_checkpoint_saves_total{result="failure"}'
COPIES = 'nezha_checkpoint_copies_total{result="failure"}'
SAVED = "nezha_checkpoint_last_success_timestamp_seconds"
DENIED = 'nezha_exporter_requests_total{path="metrics",code="401"}'


def frozen(minute: int) -> dict[str, str]:
    """No rank gets on after a minute."""
    return dict.fromkeys(HEARTS, f"0+60x{minute} {60 * minute}x…")


def phases(**minutes: float) -> dict[str, str]:
    """Seconds of a phase within a minute, on both nodes."""
    return {f'{node}{PHASE}{{phase="{name}"}}': f"0+{each}" for name, each in minutes.items() for node in ("", "h1 ")}


RESTARTS = {"nezha_run_attempt": "1x30 2x10 3x10 4x…"}

CASES: tuple[Case, ...] = (
    # ---------------------------------------------------------------------------------------------------- liveness
    Case("", "two healthy nodes", {}, 150),
    Case("NezhaExporterDown", "a node is gone", {"h1 up": "1x30 0x…"}, 33, ('NezhaExporterDown{instance="h1:29600"}',)),
    Case("NezhaExporterDown", "not after one minute", {"h1 up": "1x30 0x…"}, 31),
    Case("NezhaExporterDown", "back within the two minutes", {"h1 up": "1x30 0 1x…"}, 33),
    Case("NezhaExporterDown", "a run that ended well takes its target away", ended(30, "done"), 60),
    Case("NezhaRunFailed", "ended with an error", ended(30, "failed"), 40, ('NezhaRunFailed{state="failed"}',)),
    Case("NezhaRunFailed", "a scheduler started it again at once", at_work("failed", "0x30 1 0x…"), 40, ()),
    Case("NezhaRunFailed", "done", ended(30, "done"), 40),
    Case("NezhaRunFailed", "an hour later somebody knows", ended(30, "failed"), 120),
    Case("NezhaRunVanished", "killed with its pod", ended(30), 40, ('NezhaRunVanished{state="training"}',)),
    Case("NezhaRunVanished", "done", ended(30, "done"), 60),
    Case("NezhaRunVanished", "stopped by a signal", ended(30, "stopping"), 60),
    Case(
        "NezhaRunVanished",
        "while another run goes on",
        ended(30),
        40,
        ('NezhaRunVanished{state="training"}',),
        other={},
    ),
    Case(
        "NezhaRunVanished",
        "killed, started again at another port, and done",
        ended(10)
        | {
            f'h2 {STATE}{{state="training"}}': "_x12 1x10 0 stale",
            f'h2 {STATE}{{state="done"}}': "_x12 0x10 1 stale",
        },
        40,
    ),
    Case("NezhaRunVanished", "one node of two is seen no more", {f'h1 {STATE}{{state="training"}}': "1x30 stale"}, 60),
    Case(
        "NezhaRunVanished",
        "killed, its target still there",
        ended(30, targets_stay=True),
        40,
        (
            'NezhaExporterDown{instance="h0:29600"}',
            'NezhaExporterDown{instance="h1:29600"}',
            'NezhaRunVanished{state="training"}',
        ),
    ),
    Case("NezhaStepStalled", "a step of 1 s takes 4 minutes", frozen(30), 35, ("NezhaStepStalled",)),
    Case("NezhaStepStalled", "for 2 minutes no step is a stall", frozen(30), 31),
    Case(
        "NezhaStepStalled",
        "steps that take 20 s may take 6 minutes",
        frozen(30) | {f"{node}{DURATION}_sum": "20+1200" for node in ("", "h1 ")},
        36,
    ),
    Case("NezhaStepStalled", "a long save is no step", frozen(30) | at_work("saving"), 35),
    Case(
        "NezhaStepStalled",
        "before the first step its mean is 0 / 0",
        frozen(0)
        | {f"{node}{DURATION}_{part}": "0" for node in ("", "h1 ") for part in ("sum", "count")}
        | {f'{node}{DURATION}_bucket{{le="{le}"}}': "0" for node in ("", "h1 ") for le in ("1.0", "+Inf")},
        5,
    ),
    Case("NezhaStepStalled", "one node alone marks: the run gets on", {HEARTS[1]: "0+60x30 1800x…"}, 40),
    Case("NezhaRunStalled", "in an evaluation", frozen(30) | at_work("evaluating"), 45, ("NezhaRunStalled",)),
    Case("NezhaRunStalled", "not after nine minutes", frozen(30) | at_work("evaluating"), 39),
    Case("NezhaRunStalled", "a start takes its time", frozen(0) | at_work("starting"), 20),
    Case(
        "NezhaRunStalled",
        "for ever",
        frozen(30),
        120,
        ("NezhaRunStalled", "NezhaStepStalled"),
    ),
    Case("NezhaStartStuck", "no step for an hour", at_work("starting"), 60, ('NezhaStartStuck{state="starting"}',)),
    Case("NezhaStartStuck", "half an hour", at_work("starting"), 30),
    Case("NezhaStartStuck", "two starts of half an hour", at_work("starting", "1x28 stale 1x…"), 60),
    Case("NezhaRanksUnseen", "a node that nobody scrapes", {HEARTS[1]: None}, 10, ("NezhaRanksUnseen",)),
    Case("NezhaRanksUnseen", "done", ended(30, "done"), 60),
    Case(
        "NezhaRanksUnseen",
        "ranks of another run are no ranks of this one",
        {HEARTS[1]: None},
        10,
        ("NezhaRanksUnseen",),
        other={},
    ),
    Case(
        "NezhaClockAhead",
        "two minutes",
        {HEARTS[1]: "120+60"},
        10,
        ('NezhaClockAhead{instance="h1:29600"}',),
    ),
    Case("NezhaClockAhead", "half a minute", {HEARTS[1]: "30+60"}, 10),
    # ---------------------------------------------------------------------------------------------------- restarts
    Case("NezhaRestartLoop", "thrice in 20 minutes", RESTARTS, 55, ("NezhaRestartLoop",)),
    Case("NezhaRestartLoop", "twice", {"nezha_run_attempt": "1x30 2x10 3x…"}, 55),
    Case(
        "NezhaRestartLoop",
        "on another node each time",
        {
            "nezha_run_attempt": "1x30 stale",
            "h1 nezha_run_attempt": "_x30 2x10 stale",
            "h2 nezha_run_attempt": "_x41 3x10 4x…",
        },
        55,
        ("NezhaRestartLoop",),
    ),
    Case("NezhaRestartLoop", "the fourth start of a run that was stopped last week", {"nezha_run_attempt": "4"}, 55),
    Case("NezhaRestartLoop", "of another run", {}, 55, (), other={"nezha_run_attempt": "2x30 3x…"}),
    Case(
        "NezhaNoProgress",
        "every restart comes to step 1800 and no further",
        {
            "nezha_train_global_step": "0+60x30 " + " ".join(["1500+60x5"] * 40),
            "nezha_run_attempt": "1x30 2x40 3x40 4x…",
        },
        150,
        ("NezhaNoProgress",),
    ),
    Case(
        "NezhaNoProgress",
        "a restart that does an hour's steps again and gets on",
        {"nezha_train_global_step": "0+60x60 1800+60x…", "nezha_run_attempt": "1x60 2x…"},
        150,
    ),
    Case("NezhaNoProgress", "stopped for two hours", ended(30, "stopping"), 100),
    # ---------------------------------------------------------------------------------------------------- numerics
    Case(
        "NezhaLossNotFinite",
        "the counter of the last scrape, and then nothing",
        ended(30, "failed") | {"nezha_train_nonfinite_loss_total": "0x29 1 stale"},
        32,
        ("NezhaLossNotFinite",),
    ),
    Case(
        "NezhaLossNotFinite",
        "a gradient, first scraped as 1",
        ended(30, "failed")
        | {"nezha_train_nonfinite_gradient_total": "_x29 1 stale", "nezha_train_nonfinite_loss_total": "_x29 0 stale"},
        40,
        ("NezhaLossNotFinite", 'NezhaRunFailed{state="failed"}'),
    ),
    Case(
        "NezhaLossNotFinite",
        "started again by hand: the counter begins again",
        {"nezha_train_nonfinite_loss_total": "0x29 1 0x…"},
        40,
    ),
    Case("NezhaLossNotFinite", "an overflow of fp16 is none", {"nezha_train_grad_norm": "1x30 +Inf 1x…"}, 40),
    Case(
        "NezhaEvaluationNotFinite",
        "NaN",
        {EVALUATION: "5x30" + 20 * " NaN"},
        40,
        ('NezhaEvaluationNotFinite{split="heldout"}',),
    ),
    Case(
        "NezhaEvaluationNotFinite",
        "infinite, in the first there is",
        {EVALUATION: "_x30" + 5 * " +Inf"},
        31,
        ('NezhaEvaluationNotFinite{split="heldout"}',),
    ),
    Case("NezhaEvaluationNotFinite", "the next one was sound", {EVALUATION: "5x30" + 10 * " NaN" + " 5x…"}, 50),
    Case("NezhaEvaluationNotFinite", "no evaluation", {EVALUATION: None}, 50),
    Case("NezhaLossRising", "half as much again", {LOSS: "4x90 6x…"}, 130, ("NezhaLossRising",)),
    Case("NezhaLossRising", "a tenth more", {LOSS: "4x90 4.4x…"}, 130),
    Case("NezhaLossRising", "one spike", {LOSS: "4x90 9 4x…"}, 110),
    Case("NezhaLossRising", "no loss an hour ago", {LOSS: "4x5 6x…"}, 50),
    Case("NezhaLossSpikes", "six", {"nezha_train_loss_spikes_total": "0x30 6x…"}, 40, ("NezhaLossSpikes",)),
    Case(
        "NezhaLossSpikes",
        "two, and two more after a restart",
        {"nezha_train_loss_spikes_total": "0x10 1x10 0x10 2x…"},
        40,
    ),
    Case(
        "NezhaGradientNormHigh",
        "twentyfold",
        {"nezha_train_grad_norm": "1x90 20x…"},
        115,
        ("NezhaGradientNormHigh",),
    ),
    Case("NezhaGradientNormHigh", "single infinite ones", {"nezha_train_grad_norm": "1x90 +Inf 1x3 +Inf 1x…"}, 105),
    Case("NezhaGradientNormHigh", "fivefold", {"nezha_train_grad_norm": "1x90 5x…"}, 115),
    Case("NezhaGradientNormHigh", "not computed", {"nezha_train_grad_norm": None}, 115),
    Case(
        "NezhaOverflowsFrequent",
        "one step in five",
        {"nezha_train_overflow_steps_total": "0+12"},
        60,
        ("NezhaOverflowsFrequent",),
    ),
    Case(
        "NezhaOverflowsFrequent",
        "sixteen while the scale is found",
        {"nezha_train_overflow_steps_total": "0 16x…"},
        60,
    ),
    Case(
        "NezhaOverflowsFrequent",
        "no steps: 0 / 0",
        {"nezha_train_overflow_steps_total": "5", "nezha_train_steps_total": "5"},
        60,
    ),
    Case("NezhaLossScaleLow", "at 1", {"nezha_train_loss_scale": "1"}, 10, ("NezhaLossScaleLow",)),
    Case("NezhaLossScaleLow", "for a minute", {"nezha_train_loss_scale": "64x10 1 2x…"}, 12),
    Case("NezhaLossScaleLow", "no fp16", {"nezha_train_loss_scale": None}, 10),
    # -------------------------------------------------------------------------------------------------- efficiency
    Case(
        "NezhaThroughputDrop",
        "half the tokens",
        {'nezha_train_tokens_total{kind="real"}': "0+60000x120 7230000+30000x…"},
        160,
        ("NezhaThroughputDrop",),
    ),
    Case(
        "NezhaThroughputDrop",
        "half the time goes to evaluations",
        {
            'nezha_train_tokens_total{kind="real"}': "0+60000x120 7230000+30000x…",
            f"{DURATION}_sum": "1+60x120 7231+30x…",
            f"h1 {DURATION}_sum": "1+60x120 7231+30x…",
        },
        160,
    ),
    Case(
        "NezhaThroughputDrop",
        "a pause of half an hour without steps, 0 / 0",
        {
            'nezha_train_tokens_total{kind="real"}': "0+60000x100 6000000x30 6000000+60000x…",
            **{f"{node}{DURATION}_sum": "1+60x100 6001x30 6001+60x…" for node in ("", "h1 ")},
        },
        180,
    ),
    Case(
        "NezhaRankSlow",
        "rank 1 takes twice as long",
        {'nezha_rank_relative_performance_ratio{rank="1"}': "0.5"},
        30,
        ('NezhaRankSlow{rank="1"}',),
    ),
    Case(
        "NezhaRankSlow",
        "for one record",
        {'nezha_rank_relative_performance_ratio{rank="1"}': "0.97x15 0.2 0.97x…"},
        30,
    ),
    Case(
        "NezhaRankSlow",
        "of two runs one",
        {'nezha_rank_relative_performance_ratio{rank="1"}': "0.5"},
        30,
        ('NezhaRankSlow{rank="1"}',),
        other={},
    ),
    Case("NezhaOverheadHigh", "evaluations all the time", phases(evaluation=60), 90, ("NezhaOverheadHigh",)),
    Case("NezhaOverheadHigh", "half an hour of it", phases(evaluation=60), 45),
    # -------------------------------------------------------------------------------------------------------- data
    Case("NezhaDataStarved", "a fifth", phases(data_wait=15), 30, ('NezhaDataStarved{phase="data_wait"}',)),
    Case(
        "NezhaDataStarved",
        "on one node of two",
        {f'h1 {PHASE}{{phase="data_wait"}}': "0+15"},
        30,
        ('NezhaDataStarved{phase="data_wait"}',),
    ),
    Case("NezhaDataStarved", "a twentieth", phases(data_wait=3), 30),
    Case("NezhaFetchRetries", "two a minute", {"nezha_data_fetch_retries_total": "0+2"}, 40, ("NezhaFetchRetries",)),
    Case("NezhaFetchRetries", "ten at once", {"nezha_data_fetch_retries_total": "0x10 10x…"}, 15),
    Case("NezhaMaskRateOff", "nothing is masked", {"nezha_data_masked_ratio": "0.001"}, 20, ("NezhaMaskRateOff",)),
    Case("NezhaMaskRateOff", "everything is", {"nezha_data_masked_ratio": "0.9"}, 20, ("NezhaMaskRateOff",)),
    Case("NezhaMaskRateOff", "two fifths, as recipes may", {"nezha_data_masked_ratio": "0.4"}, 20),
    # ------------------------------------------------------------------------------------------------- checkpoints
    Case("NezhaCheckpointFailing", "one save", {SAVES: "0x30 1x…"}, 32, ("NezhaCheckpointFailing",)),
    Case(
        "NezhaCheckpointFailing",
        "two, and the run has ended by it",
        ended(30, "failed") | {SAVES: "0x28 1 2 stale"},
        32,
        ("NezhaCheckpointFailing",),
    ),
    Case("NezhaCheckpointFailing", "a restart takes the counter back", {SAVES: "0x10 1x10 0x…"}, 90),
    Case("NezhaCheckpointStale", "three hours ago", {SAVED: "0"}, 180, ("NezhaCheckpointStale",)),
    Case("NezhaCheckpointStale", "never, in three hours", {SAVED: None}, 180, ("NezhaCheckpointStale",)),
    Case("NezhaCheckpointStale", "never, in an hour", {SAVED: None}, 60),
    Case(
        "NezhaCheckpointStale",
        "started an hour ago, at a time that is no 0",
        {SAVED: None, "nezha_run_start_timestamp_seconds": "_x100 6000x…"},
        180,
    ),
    Case("NezhaCheckpointStale", "done", ended(30, "done"), 180),
    Case(
        "NezhaCheckpointDamaged",
        "passed over by the start, first scraped as 1",
        {"nezha_checkpoint_verify_failures_total": "_x5 1x…", "nezha_checkpoint_fallbacks_total": "_x5 1x…"},
        10,
        ("NezhaCheckpointDamaged",),
    ),
    Case("NezhaCheckpointDamaged", "two hours ago", {"nezha_checkpoint_verify_failures_total": "1x5 0x…"}, 120),
    Case(
        "NezhaCheckpointSpaceLow",
        "room for two",
        {"nezha_checkpoint_storage_free_bytes": "2e9"},
        20,
        ("NezhaCheckpointSpaceLow",),
    ),
    Case("NezhaCheckpointSpaceLow", "room for four", {"nezha_checkpoint_storage_free_bytes": "4e9"}, 20),
    Case("NezhaCheckpointSpaceLow", "none was made yet", {"nezha_checkpoint_size_bytes": None}, 20),
    Case("NezhaCheckpointCopyFailing", "one", {COPIES: "0x30 1x…"}, 40, ("NezhaCheckpointCopyFailing",)),
    Case("NezhaCheckpointCopyFailing", "two hours ago", {COPIES: "0x30 1x…"}, 150),
    # ------------------------------------------------------------------------------------------------------ memory
    Case(
        "NezhaMemoryNearLimit",
        "all in use",
        {'nezha_rank_memory_allocated_bytes{rank="1"}': "79e9"},
        20,
        ('NezhaMemoryNearLimit{rank="1"}',),
    ),
    Case(
        "NezhaMemoryNearLimit",
        "the allocator has to give back first",
        {
            'nezha_rank_memory_peak_bytes{rank="1"}': "79e9",
            'nezha_rank_allocator_retries_total{rank="1"}': "0+1",
        },
        20,
        ('NezhaMemoryNearLimit{rank="1"}',),
    ),
    Case("NezhaMemoryNearLimit", "a peak, once", {'nezha_rank_memory_peak_bytes{rank="1"}': "79e9"}, 20),
    Case(
        "NezhaMemoryNearLimit",
        "the retries of another rank",
        {'nezha_rank_memory_peak_bytes{rank="1"}': "79e9", 'nezha_rank_allocator_retries_total{rank="0"}': "0+1"},
        20,
    ),
    # ---------------------------------------------------------------------------------------------------- exporter
    Case(
        "NezhaExporterSlow",
        "two seconds",
        {"h1 nezha_exporter_collect_duration_seconds": "2"},
        20,
        ('NezhaExporterSlow{instance="h1:29600"}',),
    ),
    Case("NezhaExporterSlow", "once", {"h1 nezha_exporter_collect_duration_seconds": "0.003x9 2 0.003x…"}, 20),
    Case(
        "NezhaExporterRefuses",
        "a flood",
        {"h1 nezha_exporter_refused_connections_total": "0+100"},
        20,
        ('NezhaExporterRefuses{instance="h1:29600"}',),
    ),
    Case("NezhaExporterRefuses", "five", {"h1 nezha_exporter_refused_connections_total": "0x9 5x…"}, 20),
    Case(
        "NezhaExporterUnauthorized",
        "two a minute",
        {DENIED: "0+2"},
        20,
        ('NezhaExporterUnauthorized{instance="h0:29600"}',),
    ),
    Case("NezhaExporterUnauthorized", "somebody's typo", {DENIED: "0x9 3x…"}, 20),
)
