"""One plausible event of each kind, and hypothesis strategies for hostile ones."""

from typing import Any

from hypothesis import strategies as st

from nezha_ds.observe.events import Copy, Evaluation, RankMemory, Record, Save, Snapshot, Start, Stop, Trouble
from nezha_ds.observe.metrics import OBJECTIVES, PARTS, PHASES, Value


def start(**changes: Any) -> Start:
    fields: dict[str, Any] = {
        "time": 1000.0,
        "step": 0,
        "run": "demo",
        "target_steps": 2000,
        "world_size": 2,
        "sources": ("news", "law"),
        "model": "base",
        "precision": "fp16",
        "zero_stage": 1,
        "version": "0.1.0",
        "deepspeed": "0.19.8",
        "torch": "2.13.0",
    }
    return Start(**{**fields, **changes})


def record(step: int = 10, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "time": 1000.0 + step,
        "step": step,
        "epoch": 0.25,
        "loss": 7.0,
        "losses": {"mlm": 6.5, "nsp": 0.5},
        "accuracies": {"mlm": 0.032, "nsp": 0.581},
        "predictions": {"mlm": 6_000, "nsp": 320},
        "grad_norm": 1.5,
        "lamb": {
            part: {
                "weight_norm": (0.1, 9.0, 30.0),
                "update_norm": (20.0, 500.0, 800.0),
                "trust_ratio": (0.0, 0.02, 1.0),
            }
            for part in PARTS
        },
        "learning_rate": 1e-3,
        "loss_scale": 65536.0,
        "skipped_steps": 0,
        "samples": 320,
        "real_tokens": 40_000,
        "padding_tokens": 960,
        "masked_tokens": 6_000,
        "source_tokens": {"news": 27_000, "law": 9_000},
        "masked_ratio": 0.15,
        "model_flops": 4e13,
        "peak_flops": 1e13,
        "seconds": 12.0,
        "step_seconds": (1.0,) * 10,
        "rank_busy_seconds": (8.0, 9.0),
        "rank_memory": (memory(), memory()),
        "stalled_steps": 2,
        "prefetched_batches": 4,
        "phase_seconds": {"data_wait": 0.6, "forward": 3.0, "backward": 5.0, "optimizer": 1.0, "evaluation": 2.0},
    }
    return Record(**{**fields, **changes})


def memory(**changes: Any) -> RankMemory:
    return RankMemory(**{"allocated": 3 << 30, "peak": 4 << 30, "limit": 80 << 30, "retries": 1, **changes})


def of_the_server() -> list[Value]:
    """What the exporter tells of itself."""
    return [
        Value("nezha_exporter_collect_duration_seconds", 0.002),
        Value("nezha_exporter_requests_total", 1, {"path": "metrics", "code": "200"}),
        Value("nezha_exporter_refused_connections_total", 0),
    ]


def evaluation(step: int = 10, loss: float = 6.0, **changes: Any) -> Evaluation:
    fields: dict[str, Any] = {
        "time": 2000.0,
        "step": step,
        "split": "heldout",
        "loss": loss,
        "losses": {"mlm": loss},
        "accuracies": {"mlm": 0.1},
        "predictions": {"mlm": 900},
        "seconds": 2.0,
    }
    return Evaluation(**{**fields, **changes})


def save(step: int = 10, **changes: Any) -> Save:
    fields: dict[str, Any] = {
        "time": 3000.0,
        "step": step,
        "ok": True,
        "seconds": 0.7,
        "bytes": 1_200_000_000,
        "free_bytes": 10**12,
    }
    return Save(**{**fields, **changes})


def trouble(step: int = 10, **changes: Any) -> Trouble:
    fields: dict[str, Any] = {"time": 1500.0, "step": step, "what": "spike", "value": 9.0, "limit": 7.5}
    return Trouble(**{**fields, **changes})


def snapshot(step: int = 10, **changes: Any) -> Snapshot:
    return Snapshot(**{"time": 2999.0, "step": step, "seconds": 0.2, **changes})


def copy(step: int = 10, **changes: Any) -> Copy:
    return Copy(**{"time": 3001.0, "step": step, "ok": True, "seconds": 5.0, "bytes": 1_200_000_000, **changes})


def stop(step: int = 10, **changes: Any) -> Stop:
    fields: dict[str, Any] = {"time": 4000.0, "step": step, "signal": "SIGTERM"}
    return Stop(**{**fields, **changes})


# What a run that goes wrong may report: losses that exploded, intervals without a step.
numbers = st.floats(allow_nan=True, allow_infinity=True)
counts = st.integers(0, 10**12)
records = st.builds(
    record,
    loss=numbers,
    losses=st.dictionaries(st.sampled_from(OBJECTIVES), numbers),
    accuracies=st.dictionaries(st.sampled_from(OBJECTIVES), st.floats(0, 1)),
    predictions=st.dictionaries(st.sampled_from(OBJECTIVES), counts),
    grad_norm=st.none() | numbers,
    loss_scale=st.none() | numbers,
    real_tokens=counts,
    masked_tokens=counts,
    source_tokens=st.dictionaries(st.text(min_size=1), counts),
    rank_busy_seconds=st.lists(st.floats(0, 1e4), max_size=4).map(tuple),
    rank_memory=st.lists(st.builds(memory, retries=st.none() | counts), max_size=4).map(tuple),
    prefetched_batches=st.none() | counts,
    stalled_steps=counts,
    masked_ratio=st.floats(0, 1),
    step_seconds=st.lists(st.floats(0, 1e4), max_size=4).map(tuple),
    phase_seconds=st.dictionaries(st.sampled_from(PHASES), st.floats(0, 1e4)),
)
events = st.one_of(
    records,
    st.builds(start, step=st.integers(0, 100), run=st.text(), job_id=st.text()),
    st.builds(evaluation, step=st.integers(0, 100), loss=numbers, split=st.text(min_size=1)),
    st.builds(save, step=st.integers(0, 100), ok=st.booleans(), free_bytes=st.none() | counts),
    st.builds(snapshot, step=st.integers(0, 100)),
    st.builds(copy, step=st.integers(0, 100), ok=st.booleans()),
    st.builds(stop, signal=st.sampled_from(["SIGTERM", "SIGINT", "SIGUSR1"])),
    st.builds(trouble, what=st.sampled_from(["spike", "loss", "gradient"]), value=numbers, skipped=st.booleans()),
)
