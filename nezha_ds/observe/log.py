"""Words for people: one log format, and one line for each log step.

Rank 0 talks; the other ranks only warn. On a terminal the line is the tail of a progress bar; in a file, under a
launcher or a scheduler, it is a plain line:

    step 120/2000 · loss 7.123 (mlm 6.511, nsp 0.612) · acc mlm 3.2%, nsp 58.1% · lr 1.0e-03 · 8.4k tok/s · data 0% · …
"""

import logging
import sys
from collections.abc import Iterator, Mapping

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TextColumn

from nezha_ds.observe.events import Evaluation, Event, Record, Save, Start
from nezha_ds.observe.meters import Pace
from nezha_ds.world import World

log = logging.getLogger(__name__)


class _Stderr(logging.Handler):
    """Writes to whatever `sys.stderr` is now: a progress bar puts itself in its place and prints lines above it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except OSError:
            # The terminal or the pipe is gone. The run is worth more than its log.
            self.handleError(record)


def set_up_logging(world: World) -> None:
    """Give every logger of this process one format with the rank in it. Rank 0 tells INFO, others WARNING.

    Libraries stay at WARNING. Calling it again replaces what it set.
    """
    handler = _Stderr()
    where = f"[{world.rank}/{world.world_size}]"
    handler.setFormatter(logging.Formatter(f"%(asctime)s {where} %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each, _Stderr)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    logging.getLogger("nezha_ds").setLevel(logging.INFO if world.is_main else logging.WARNING)


class Console:
    """The observer that talks to people, through the log or a progress bar."""

    def __init__(self, world: World, terminal: Terminal | None = None) -> None:
        """`terminal` is where a bar would be drawn: stderr unless given. No terminal, or not rank 0: plain lines."""
        terminal = terminal or Terminal(stderr=True)
        self._bar = _bar(terminal) if world.is_main and terminal.is_terminal else None
        self._target = 0
        self._pace = Pace()

    def update(self, event: Event) -> None:
        """Tell one event."""
        match event:
            case Start():
                self._start(event)
            case Record():
                self._record(event)
            case Evaluation() | Save():
                log.info("%s", event_line(event))

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()

    def _start(self, event: Start) -> None:
        self._target = event.target_steps
        log.info("%s", event_line(event))
        if self._bar:
            self._bar.add_task("", total=event.target_steps, completed=event.step)
            self._bar.start()

    def _record(self, event: Record) -> None:
        self._pace.update(len(event.step_seconds), event.seconds)
        left = self._target - event.step if event.steps_left is None else event.steps_left
        line = record_line(event, self._target, self._pace.remaining(left))
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=event.step, description=line)
        else:
            log.info("%s", line)


def record_line(record: Record, target_steps: int, remaining: float | None = None) -> str:
    """A log step in one line; `remaining` is the time left in seconds."""
    return " · ".join(_record_parts(record, target_steps, remaining))


def _record_parts(record: Record, target_steps: int, remaining: float | None) -> Iterator[str]:
    yield f"step {record.step}/{target_steps}"
    yield f"loss {_losses(record)}"
    yield f"acc {accuracies(record.accuracies)}"
    yield f"lr {record.learning_rate:.1e}"
    if record.loss_scale is not None:
        yield f"scale {record.loss_scale:g}"
    if record.skipped_steps:
        yield f"skipped {record.skipped_steps}"
    yield f"{short(record.tokens_per_second)} tok/s"
    if record.flops_utilization is not None:
        yield f"MFU {record.flops_utilization:.0%}"
    yield f"data {record.data_wait_ratio:.0%}"
    if remaining is not None:
        yield f"ETA {clock(remaining)}"


def event_line(event: Start | Evaluation | Save) -> str:
    """Any other event in one line."""
    match event:
        case Start():
            return (
                f"run {event.run}: step {event.step} to {event.target_steps}, {event.model} in {event.precision}, "
                f"ZeRO {event.zero_stage}, {event.world_size} ranks"
            )
        case Evaluation():
            return (
                f"step {event.step} · {event.split} loss {_losses(event)} · acc {accuracies(event.accuracies)} · "
                f"{event.seconds:.1f} s"
            )
        case Save():
            return f"step {event.step} · checkpoint {'saved' if event.ok else 'FAILED'} · {event.seconds:.1f} s"


def short(number: float) -> str:
    """A count in four characters or so: 950, 8.4k, 12M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 0.9995 so that 999,900 reads 1.0M and not 1000k.
        if number >= 0.9995 * size:
            return f"{number / size:.1f}{unit}" if number < 9.95 * size else f"{number / size:.0f}{unit}"
    return f"{number:.0f}"


def clock(seconds: float) -> str:
    """A duration as 4:10, 1:02:03 or 2d 03:00:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def accuracies(shares: Mapping[str, float]) -> str:
    """Shares of right predictions; with their objectives where there are several, or another than masked words."""
    named = list(shares) != ["mlm"]
    return ", ".join(f"{name} {share:.1%}" if named else f"{share:.1%}" for name, share in shares.items())


def _losses(event: Record | Evaluation) -> str:
    parts = ", ".join(f"{name} {loss:.3f}" for name, loss in event.losses.items())
    return f"{event.loss:.3f} ({parts})" if len(event.losses) > 1 else f"{event.loss:.3f}"


def _bar(terminal: Terminal) -> Progress:
    # `markup=False`: a run's name may hold brackets.
    return Progress(
        BarColumn(bar_width=20), TextColumn("{task.description}", markup=False), console=terminal, auto_refresh=False
    )
