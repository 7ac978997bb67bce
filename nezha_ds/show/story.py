"""What a journal tells, taken in event by event: the curves that led to where the run is, and all that happened to it.

A restart undoes the curves beyond the step from which it goes on, as `journal.history` has it; incidents stay. Taking
in a record costs 50 µs, and it is kept as numbers only, about 600 bytes.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nezha_ds.observe.events import Copy, Evaluation, Event, Record, Save, Snapshot, Start, Stop, Trouble
from nezha_ds.observe.meters import Pace
from nezha_ds.show.columns import Columns

Incident = Start | Save | Copy | Stop | Trouble
KEPT_INCIDENTS = 20_000
"""The newest; all are counted."""
HELDOUT = "heldout"


@dataclass
class Story:
    """Everything that is drawn of one run."""

    records: Columns = field(default_factory=Columns)
    evaluations: dict[str, Columns] = field(default_factory=dict)
    """By split: `heldout`, and `heldout/NAME` for one of several texts."""
    starts: list[Start] = field(default_factory=list)
    heard_until: list[float] = field(default_factory=list)
    """When each of them told something for the last time."""
    incidents: deque[Incident] = field(default_factory=lambda: deque(maxlen=KEPT_INCIDENTS))
    counts: Counter[str] = field(default_factory=Counter)
    """Incidents by what they are; `undone` counts the records that restarts threw away."""
    record: Record | None = None
    """The newest."""
    evaluation: dict[str, Evaluation] = field(default_factory=dict)
    """The newest by split."""
    best: Evaluation | None = None
    """The held-out evaluation with the lowest loss."""
    save: Save | None = None
    """The newest that was committed."""
    copy: Copy | None = None
    pending: Snapshot | None = None
    """A checkpoint that was begun and of which nothing more was told."""
    last: Event | None = None
    pace: Pace = field(default_factory=Pace)
    """Of this attempt."""
    heard: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    """When the newest records were written."""

    def take(self, event: Event) -> None:
        """Take in the next event."""
        self.last = event
        if self.heard_until and not isinstance(event, Start):
            self.heard_until[-1] = event.time
        match event:
            case Start():
                self._start(event)
            case Record():
                self._record(event)
            case Evaluation():
                self._evaluate(event)
            case Snapshot():
                self.pending = event
            case Save():
                self.pending = None
                self.save = event if event.ok else self.save
                self._note(event, f"save {'ok' if event.ok else 'failed'}")
            case Copy():
                self.copy = event
                self._note(event, f"copy {'ok' if event.ok else 'failed'}")
            case Stop():
                self._note(event, "stop")
            case Trouble():
                self._note(event, f"{event.what}{' left out' if event.skipped else ''}")

    @property
    def start(self) -> Start | None:
        """Of this attempt."""
        return self.starts[-1] if self.starts else None

    @property
    def step(self) -> int:
        """Where the run is."""
        return self.last.step if self.last else 0

    @property
    def target(self) -> int | None:
        """The step at which it is done."""
        return self.starts[-1].target_steps if self.starts else None

    @property
    def seconds_left(self) -> float | None:
        """At this attempt's pace; None before its first record."""
        if self.record is None or self.target is None:
            return None
        left = self.record.steps_left
        return self.pace.remaining(self.target - self.step if left is None else left)

    def _note(self, event: Incident, name: str) -> None:
        self.incidents.append(event)
        self.counts[name] += 1

    def _start(self, event: Start) -> None:
        before = len(self.records)
        for columns in (self.records, *self.evaluations.values()):
            columns.cut(event.step)
        self.counts["undone"] += before - len(self.records)
        if self.best and self.best.step > event.step:
            self.best = self._best_left()
        self.pending, self.pace = None, Pace()
        self.heard.clear()
        self.starts.append(event)
        self.heard_until.append(event.time)
        self._note(event, "start")

    def _best_left(self) -> Evaluation | None:
        """What remains of the evaluations is numbers; the newest best is told again by those that come."""
        newest = self.evaluation.get(HELDOUT)
        columns = self.evaluations.get(HELDOUT)
        if newest is None or not columns or not len(columns):
            return None
        losses = columns.columns["loss"]
        place = min(range(len(losses)), key=lambda one: (losses[one] != losses[one], losses[one]))
        names = [name.removeprefix("accuracy/") for name in columns.columns if name.startswith("accuracy/")]
        shares = {name: columns.columns[f"accuracy/{name}"][place] for name in names}
        found = {"step": int(columns.steps[place]), "loss": losses[place], "accuracies": shares}
        return newest.model_copy(update=found)

    def _record(self, event: Record) -> None:
        rows = self.records
        tokens = (rows.tokens[-1] if len(rows) else 0.0) + event.real_tokens
        seconds = (rows.seconds[-1] if len(rows) else 0.0) + event.seconds
        rows.add(event.step, tokens, seconds, dict(_numbers(event)))
        self.record = event
        self.heard.append(event.time)
        self.pace.update(len(event.step_seconds), event.seconds)

    def _evaluate(self, event: Evaluation) -> None:
        rows = self.evaluations.setdefault(event.split, Columns())
        trained = self.records
        tokens, seconds = (trained.tokens[-1], trained.seconds[-1]) if len(trained) else (0.0, 0.0)
        numbers = {"loss": event.loss, **_named("loss", event.losses), **_named("accuracy", event.accuracies)}
        rows.add(event.step, tokens, seconds, numbers)
        self.evaluation[event.split] = event
        # A NaN is the best of nothing.
        if event.split == HELDOUT and event.loss == event.loss and (not self.best or event.loss < self.best.loss):
            self.best = event


def _numbers(event: Record) -> Iterator[tuple[str, float | None]]:
    """A record's columns."""
    yield "loss", event.loss
    yield from _named("loss", event.losses).items()
    yield from _named("accuracy", event.accuracies).items()
    yield "learning rate", event.learning_rate
    yield "gradient norm", event.grad_norm
    yield "loss scale", event.loss_scale
    yield "overflows", event.skipped_steps
    yield "tokens per second", event.tokens_per_second
    yield "utilization", event.flops_utilization
    steps = event.step_seconds
    yield "seconds", event.seconds
    yield "step seconds", sum(steps) / len(steps) if steps else None
    yield "longest step", max(steps, default=None)
    yield "data wait", event.data_wait_ratio
    yield "slowest rank", min(event.relative_performance, default=None)
    yield "memory", max((one.peak / one.limit for one in event.rank_memory if one.limit), default=None)
    yield "stalled steps", event.stalled_steps
    yield "mask rate", event.masked_ratio
    places = event.real_tokens + event.padding_tokens
    yield "padding", event.padding_tokens / places if places else None
    yield from _named("phase", event.phase_seconds).items()
    yield from _named("source", event.source_tokens).items()
    for part, measures in event.lamb.items():
        for measure, numbers in measures.items():
            for quantile, number in zip(("min", "median", "max"), numbers, strict=True):
                yield f"{measure}/{part}/{quantile}", number


def _named(kind: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": number for name, number in numbers.items()}
