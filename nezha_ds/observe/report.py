"""What a run came to, in ten lines: made from its journal alone, so it can be made again at any time."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from nezha_ds.observe.events import Evaluation, Event, Record, Save, Start
from nezha_ds.observe.journal import history
from nezha_ds.observe.log import accuracies, clock, short
from nezha_ds.observe.metrics import PHASES


@dataclass(frozen=True)
class Summary:
    """The numbers of a finished or unfinished run. None: nothing of the kind happened. Losses are in nats."""

    run: str | None
    step: int
    """The last step that any event tells of."""
    target_steps: int | None
    attempts: int
    """How often the run was started."""
    first_loss: float | None
    last_loss: float | None
    best_heldout_loss: float | None
    best_heldout_step: int | None
    heldout_accuracies: dict[str, float]
    """By objective, at the step of the best loss; empty where nothing was evaluated."""
    tokens_per_second: float | None
    """Median over the records."""
    seconds: float
    """Wall time of the records that count; what a crash threw away is not in it."""
    phase_seconds: dict[str, float]
    source_tokens: dict[str, int]
    """Text tokens of each source that led to where the run is."""
    steps: int
    skipped_steps: int
    saves: int


def summarise(events: Iterable[Event], split: str = "heldout") -> Summary:
    """Sum up a journal; `split` names the evaluations that decide which step was best."""
    kept = history(events)
    starts = [event for event in kept if isinstance(event, Start)]
    records = [event for event in kept if isinstance(event, Record)]
    # A NaN is not the best of anything, although `min` may say so.
    scored = [e for e in kept if isinstance(e, Evaluation) and e.split == split and e.loss == e.loss]
    best = min(scored, key=lambda evaluation: evaluation.loss, default=None)
    return Summary(
        run=starts[-1].run if starts else None,
        step=max((event.step for event in kept), default=0),
        target_steps=starts[-1].target_steps if starts else None,
        attempts=len(starts),
        first_loss=records[0].loss if records else None,
        last_loss=records[-1].loss if records else None,
        best_heldout_loss=best.loss if best else None,
        best_heldout_step=best.step if best else None,
        heldout_accuracies=dict(best.accuracies) if best else {},
        tokens_per_second=median(record.tokens_per_second for record in records) if records else None,
        seconds=sum(record.seconds for record in records),
        phase_seconds={phase: sum(r.phase_seconds.get(phase, 0.0) for r in records) for phase in PHASES},
        source_tokens=_by_source(records),
        steps=sum(len(record.step_seconds) for record in records),
        skipped_steps=sum(record.skipped_steps for record in records),
        saves=sum(isinstance(event, Save) and event.ok for event in kept),
    )


def to_text(summary: Summary) -> str:
    """The summary for people."""
    rows = [
        ("run", f"{summary.run or '-'}, started {summary.attempts} times"),
        ("step", f"{summary.step} of {_shown(summary.target_steps, 'd')}, {summary.skipped_steps} skipped"),
        ("loss", f"{_shown(summary.first_loss)} at first, {_shown(summary.last_loss)} at last"),
        ("held out", _heldout(summary)),
        (
            "speed",
            "-" if summary.tokens_per_second is None else f"{short(summary.tokens_per_second)} tokens/s (median)",
        ),
        *([("text", _sources(summary))] if len(summary.source_tokens) > 1 else []),
        ("time", f"{clock(summary.seconds)} ({_phases(summary)})"),
        ("saves", str(summary.saves)),
    ]
    return "\n".join(f"{name:<9} {value}" for name, value in rows)


def _by_source(records: Iterable[Record]) -> dict[str, int]:
    tokens: Counter[str] = Counter()
    for record in records:
        tokens.update(record.source_tokens)
    return dict(tokens)


def _sources(summary: Summary) -> str:
    whole = max(1, sum(summary.source_tokens.values()))
    parts = (f"{name} {short(tokens)} ({tokens / whole:.1%})" for name, tokens in summary.source_tokens.items())
    return f"tokens of {', '.join(parts)}"


def _heldout(summary: Summary) -> str:
    if summary.best_heldout_loss is None:
        return "not evaluated"
    return (
        f"best loss {summary.best_heldout_loss:.3f} at step {summary.best_heldout_step}, "
        f"accuracy {accuracies(summary.heldout_accuracies)}"
    )


def _phases(summary: Summary) -> str:
    """Shares of the wall time; what no phase claims is `other`."""
    claimed = sum(summary.phase_seconds.values())
    parts = {**summary.phase_seconds, "other": max(0.0, summary.seconds - claimed)}
    whole = max(summary.seconds, claimed)
    return ", ".join(f"{phase} {seconds / whole:.0%}" for phase, seconds in parts.items()) if whole else "nothing timed"


def _shown(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
