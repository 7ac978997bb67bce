"""A run as Prometheus has it when all goes well: two nodes of one rank each, a step a second, a sample of each series a
minute, in promtool's notation. What a case is about is changed; everything else stays, and must stay silent.
"""

from collections.abc import Mapping

# Keys are `NODE NAME{LABELS}`, NODE being h0 where it is left out. `0+60` grows by 60 from one minute to the next.
STATES = ("starting", "training", "evaluating", "saving", "stopping", "done", "failed")
_NODE = {
    "up": "1",
    **{f'nezha_run_state{{state="{state}"}}': "1" if state == "training" else "0" for state in STATES},
    "nezha_train_last_step_timestamp_seconds": "0+60",
    "nezha_train_step_duration_seconds_sum": "1+60",
    "nezha_train_step_duration_seconds_count": "1+60",
    'nezha_train_step_duration_seconds_bucket{le="1.0"}': "0+60",
    'nezha_train_step_duration_seconds_bucket{le="+Inf"}': "0+60",
    'nezha_train_phase_seconds_total{phase="data_wait"}': "0+1",
    'nezha_train_phase_seconds_total{phase="forward"}': "0+20",
    'nezha_train_phase_seconds_total{phase="backward"}': "0+30",
    'nezha_train_phase_seconds_total{phase="optimizer"}': "0+5",
    'nezha_train_phase_seconds_total{phase="evaluation"}': "0+2",
    'nezha_train_phase_seconds_total{phase="checkpoint"}': "0+1",
    "nezha_exporter_collect_duration_seconds": "0.003",
    "nezha_exporter_refused_connections_total": "0",
    'nezha_exporter_requests_total{path="metrics",code="200"}': "0+4",
    'nezha_exporter_requests_total{path="metrics",code="401"}': "0",
}
_RANK = {
    "nezha_rank_relative_performance_ratio": "0.97",
    "nezha_rank_memory_allocated_bytes": "40e9",
    "nezha_rank_memory_peak_bytes": "60e9",
    "nezha_rank_memory_limit_bytes": "80e9",
    "nezha_rank_allocator_retries_total": "0",
}
_RUN = {
    "nezha_run_start_timestamp_seconds": "0",
    "nezha_run_attempt": "1",
    "nezha_run_world_size": "2",
    "nezha_train_global_step": "0+60",
    "nezha_train_steps_total": "0+60",
    'nezha_train_tokens_total{kind="real"}': "0+60000",
    'nezha_train_tokens_total{kind="masked"}': "0+9000",
    'nezha_train_loss{objective="total"}': "9-0.01",
    "nezha_train_grad_norm": "1",
    "nezha_train_loss_scale": "65536",
    "nezha_train_overflow_steps_total": "0",
    "nezha_train_loss_spikes_total": "0",
    "nezha_train_nonfinite_loss_total": "0",
    "nezha_train_nonfinite_gradient_total": "0",
    'nezha_eval_loss{split="heldout",objective="total"}': "5",
    "nezha_data_masked_ratio": "0.15",
    "nezha_data_fetch_retries_total": "0",
    'nezha_checkpoint_saves_total{result="failure"}': "0",
    "nezha_checkpoint_last_success_timestamp_seconds": "0+60",
    "nezha_checkpoint_size_bytes": "1e9",
    "nezha_checkpoint_storage_free_bytes": "1e12",
    "nezha_checkpoint_verify_failures_total": "0",
    "nezha_checkpoint_fallbacks_total": "0",
    'nezha_checkpoint_copies_total{result="failure"}': "0",
    **{f'{name}{{rank="{rank}"}}': value for name, value in _RANK.items() for rank in (0, 1)},
    'nezha_rank_last_heartbeat_timestamp_seconds{rank="0"}': "0+60",
}
HEALTHY: Mapping[str, str] = {
    **_RUN,
    **_NODE,
    **{f"h1 {name}": value for name, value in _NODE.items()},
    'h1 nezha_rank_last_heartbeat_timestamp_seconds{rank="1"}': "0+60",
}


def at_work(state: str, values: str = "1") -> dict[str, str]:
    """Both nodes at another state than training; or `training` for as long as some values say."""
    changes = {f'nezha_run_state{{state="{one}"}}': "0" for one in STATES} | {
        f'nezha_run_state{{state="{state}"}}': values
    }
    return changes | {f"h1 {name}": value for name, value in changes.items()}


def ended(minutes: int, state: str = "", targets_stay: bool = False) -> dict[str, str]:
    """Everything for so many minutes, then nothing; `state` is the last minute's."""
    changes = {name: _until(values, minutes) for name, values in HEALTHY.items()}
    if targets_stay:
        changes |= {f"{node}up": f"1x{minutes} 0x…" for node in ("", "h1 ")}
    for node in ("", "h1 ") if state else ():
        changes[f'{node}nezha_run_state{{state="training"}}'] = f"1x{minutes - 1} 0 stale"
        changes[f'{node}nezha_run_state{{state="{state}"}}'] = f"0x{minutes - 1} 1 stale"
    return changes


def series(changes: Mapping[str, str | None], minutes: int, run: str = "r") -> list[dict[str, str]]:
    """All series of a run for so many minutes, in promtool's form; None takes one away."""
    return [
        {"series": _selector(name, run), "values": _lasting(values, minutes)}
        for name, values in {**HEALTHY, **changes}.items()
        if values is not None
    ]


def _selector(name: str, run: str) -> str:
    node, _, rest = name.rpartition(" ")
    metric, _, labels = rest.partition("{")
    own = [f'job="nezha",run="{run}",instance="{node or "h0"}:29600"', labels.removesuffix("}")]
    return f"{metric}{{{','.join(part for part in own if part)}}}"


def _lasting(values: str, minutes: int) -> str:
    return values.replace("…", str(minutes)) if "x" in values or " " in values else f"{values}x{minutes}"


def _until(values: str, minutes: int) -> str:
    return f"{values}x{minutes} stale"
