"""TensorBoard's event files, for who has TensorBoard: an option, by tensorboard's own writer of records.

One file an attempt, one record an event, written at once and without a thread: 70 scalars are 5 kB and take 1 ms. What
stands in it are the gauges of the table of metrics (`nezha_train_loss{objective="mlm"}` is `train/loss/mlm`) and the
speed. An attempt that goes back tells TensorBoard to drop what lies beyond its step. As with the journal, a disk that
is full costs scalars and one warning, never the run.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nezha_ds.errors import ConfigError
from nezha_ds.files import make_folder, unwritable
from nezha_ds.observe.events import Evaluation, Event, Record, Start
from nezha_ds.observe.metrics import BY_NAME, Value
from nezha_ds.observe.values import values_of

TENSORBOARD = "tensorboard"
"""In the run folder."""
FILE = "events.out.tfevents.{:05}"
"""TensorBoard reads the files of a folder in the order of their names."""
VERSION = "brain.Event:2"

log = logging.getLogger(__name__)


class TensorBoardFile:
    """The observer that writes a file of scalars; LaunchError when it cannot be opened."""

    def __init__(self, folder: Path) -> None:
        protocol, record_writer = load_tensorboard()
        self._protocol = protocol
        self.lost = 0
        """Events that could not be written."""
        make_folder(folder)
        numbers = [int(path.suffix[1:]) for path in folder.glob("events.out.tfevents.*") if path.suffix[1:].isdecimal()]
        self.path = folder / FILE.format(max(numbers, default=0) + 1)
        try:
            self._file = self.path.open("xb", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from None
        self._size = 0
        self._records = record_writer(_Whole(self._file))

    def update(self, event: Event) -> None:
        """Write one event's scalars."""
        match event:
            case Start():
                # From here on nothing beyond the step counts that was told before.
                began = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
                self._write(event, file_version=VERSION)
                self._write(event, step=event.step + 1, session_log=began)
            case Record() | Evaluation():
                summary = self._protocol.Summary()
                for tag, value in scalars_of(event):
                    summary.value.add(tag=tag, simple_value=value)
                self._write(event, step=event.step, summary=summary)
            case _:
                pass

    def close(self) -> None:
        """Close the file and tell what is missing in it."""
        self._file.close()
        if self.lost:
            log.warning("%s lacks %d events that could not be written", self.path, self.lost)

    def _write(self, event: Event, **content: Any) -> None:
        try:
            self._records.write(self._protocol.Event(wall_time=event.time, **content).SerializeToString())
            self._size = self._file.tell()
        except OSError as error:
            # A part of a record would hide all that follow it.
            self._file.truncate(self._size)
            self._file.seek(self._size)
            if not self.lost:
                log.warning("%s cannot be written (%s); training goes on without it", self.path, error.strerror)
            self.lost += 1


class _Whole:
    """A file that takes everything or raises: an unbuffered one may take a part of what it is given."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]


def load_tensorboard() -> tuple[Any, Any]:
    """TensorBoard's protocol buffers and its writer of records; ConfigError without the package."""
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise ConfigError(
            "run.tensorboard = true needs the package tensorboard; pip install 'nezha-ds[tensorboard]', or set "
            "run.tensorboard=false"
        ) from None
    # Their classes are made when they are imported, so no checker of types knows them.
    events: Any = event_pb2
    summaries: Any = summary_pb2
    return _Protocol(events.Event, events.SessionLog, summaries.Summary), RecordWriter


class _Protocol:
    """The three messages that are used."""

    def __init__(self, event: Any, session: Any, summary: Any) -> None:
        self.Event, self.SessionLog, self.Summary = event, session, summary


def scalars_of(event: Record | Evaluation) -> Iterator[tuple[str, float]]:
    """Tag and value of everything in an event that is worth a curve. Single ranks are not: there may be thousands."""
    for value in values_of(event):
        metric = BY_NAME[value.name]
        if metric.kind == "gauge" and "rank" not in metric.labels and not value.name.endswith("_timestamp_seconds"):
            yield _tag(value), value.value
    if isinstance(event, Record):
        yield "train/tokens_per_second", event.tokens_per_second
        yield "train/overflow_steps", event.skipped_steps
        for phase, seconds in event.phase_seconds.items():
            yield f"train/phase_seconds/{phase}", seconds
        if event.step_seconds:
            yield "train/step_seconds", sum(event.step_seconds) / len(event.step_seconds)


def _tag(value: Value) -> str:
    room, _, name = value.name.removeprefix("nezha_").partition("_")
    return "/".join([room, name, *value.labels.values()])
