"""What a node can feed, told before GPUs are booked: the loader as training uses it, with nothing behind it.

One process alone, then one for each rank of the node at the same time, each with its own loader, thread and share of
the samples. Tokens count places, padding included, as a GPU computes them. What the loader's thread is at is found by
looking at its stack 500 times a second, which costs it 1%: the shares are good to a few points.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from nezha_ds.config import Settings
from nezha_ds.data.collate import replacement_ids, special_ids
from nezha_ds.data.dataset import shelf_of
from nezha_ds.data.loader import Loader, Stream, build_loader
from nezha_ds.data.mixture import open_mixture, read_manifests
from nezha_ds.data.plan import Progress
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import LaunchError
from nezha_ds.text.kinds import kind_of
from nezha_ds.world import World

INTERVAL = 0.002
"""Seconds between two looks at the loader's thread."""


class Rate(NamedTuple):
    """How many sequences a second a GPU takes."""

    name: str
    rate: float
    source: str


RATES: dict[int, tuple[Rate, ...]] = {
    128: (
        Rate("V100", 272, "BERT-large in 44 minutes on 1,024 of them, DeepSpeed"),
        Rate("A100", 580, "BERT-large, phase 1, NVIDIA DeepLearningExamples"),
    ),
    512: (
        Rate("A100", 210, "BERT-large, phase 2, NVIDIA DeepLearningExamples"),
        Rate("H100", 970, "BERT-large, packed, MLPerf on 8 of them"),
    ),
}
"""Published rates by length."""

STAGES = {
    "nezha_ds.shards": "reading",
    "nezha_ds.shelf": "reading",
    "nezha_ds.data.order": "slicing",
    "nezha_ds.data.mixture": "slicing",
    "nezha_ds.data.plan": "slicing",
    "nezha_ds.data.dataset": "slicing",
    "nezha_ds.data.collate": "slicing",
    "nezha_ds.data.masking": "masking",
    "nezha_ds.data.pipeline": "batches",
    "nezha_ds.data.loader": "batches",
}
"""What a module does: `reading` opens and checks shards, `slicing` finds samples and copies them into rows, `batches`
makes tensors of them and hands them over. Others work for the one that called them."""


class StreamSettings(Settings):
    """What of a recipe a loader depends on."""

    data: DataSettings
    masking: MaskingSettings = MaskingSettings()


class BenchSettings(Settings):
    """How the loader is measured."""

    micro_batch: int = Field(default=32, ge=1)
    """Samples that are taken at once."""
    ranks: int = Field(default_factory=lambda: torch.cuda.device_count() or min(8, len(os.sched_getaffinity(0))), ge=1)
    """Processes beside each other; unset: the GPUs of this node, or without any its cores, at most 8."""
    seconds: float = Field(default=5.0, gt=0)
    """How long each measurement reads."""
    gpu_rate: float | None = Field(default=None, gt=0)
    """Sequences a second of one GPU, as measured in training; unset: published rates, where there are any."""
    seed: int = Field(default=1, ge=0)
    """Decides order and masks."""


@dataclass(frozen=True)
class Reading:
    """What one process read."""

    first_batch: float
    """Seconds from nothing opened to the first micro-batch."""
    seconds: float
    """Of reading after it."""
    cpu_seconds: float
    """Of a core, in the same time."""
    sequences: int
    anonymous: int
    """Bytes that the loader took for itself, without the pages of mapped files, which all processes share."""
    looks: dict[str, int]
    """How often the thread was found at each stage."""


@dataclass(frozen=True)
class Measurement:
    """What so many processes read at the same time."""

    processes: int
    sequences_per_second: float
    tokens_per_second: float
    """Padding included."""
    first_batch_seconds: float
    """Of the slowest process."""
    memory_per_rank: int
    """Bytes of the largest."""
    cores: float
    """That the processes had together; fewer than processes where others ran too, or disks were waited for."""
    cpu_seconds_per_sequence: float
    shares: dict[str, float]
    """Of the threads' time, by stage."""


@dataclass(frozen=True)
class Fed:
    """What it means for one kind of GPU."""

    name: str
    rate: float
    """Sequences a second that one takes."""
    source: str
    gpus: float
    """How many of them all processes together can feed."""
    cores: float
    """Cores of this machine that one of them takes."""


@dataclass(frozen=True)
class Report:
    """All that `nezha-ds bench-loader` tells."""

    shards: str
    length: int
    format: str
    masking: str
    micro_batch: int
    samples: int
    """In the plan."""
    plan_seconds: float
    """To build the plan, or to open it."""
    measurements: tuple[Measurement, ...]
    gpus: tuple[Fed, ...]


def measure(
    data: DataSettings, masking: MaskingSettings, bench: BenchSettings, progress: Progress | None = None
) -> Report:
    """Read as one process and as `ranks` of them. DataError when the data is at fault, LaunchError for a killed one."""
    began = time.perf_counter()
    with closing(open_mixture(data, "train", progress)) as mixture:
        samples = len(mixture)
    plan_seconds = time.perf_counter() - began
    measurements = tuple(_measure(data, masking, bench, count) for count in sorted({1, bench.ranks}))
    rates = RATES.get(data.length, ()) if bench.gpu_rate is None else (Rate("GPU", bench.gpu_rate, "--gpu-rate"),)
    alone, together = measurements[0], measurements[-1]
    return Report(
        shards=", ".join(part.shards for part in data.parts.values()),
        length=data.length,
        format=data.format,
        masking=masking.method,
        micro_batch=bench.micro_batch,
        samples=samples,
        plan_seconds=plan_seconds,
        measurements=measurements,
        gpus=tuple(
            Fed(*one, gpus=together.sequences_per_second / one.rate, cores=one.rate * alone.cpu_seconds_per_sequence)
            for one in rates
        ),
    )


def _measure(data: DataSettings, masking: MaskingSettings, bench: BenchSettings, processes: int) -> Measurement:
    """So many fresh processes at the same time."""
    # A fork would take this process's threads for its own.
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes)
    try:
        with ProcessPoolExecutor(processes, context, _start, (together,)) as pool:
            futures = [pool.submit(_read, data, masking, bench, rank, processes) for rank in range(processes)]
            failed = [error for future in futures if (error := future.exception()) is not None]
            if failed:
                # The others only tell that they were not met.
                raise next((one for one in failed if not isinstance(one, threading.BrokenBarrierError)), failed[0])
            readings = [future.result() for future in futures]
    except BrokenProcessPool:
        raise LaunchError(
            f"one of {processes} processes was killed, most likely for want of memory; take fewer with --ranks"
        ) from None
    return _sum_up(readings, data.length)


def _sum_up(readings: Sequence[Reading], length: int) -> Measurement:
    rate = sum(reading.sequences / reading.seconds for reading in readings)
    looks = sum((Counter(reading.looks) for reading in readings), Counter[str]())
    return Measurement(
        processes=len(readings),
        sequences_per_second=rate,
        tokens_per_second=rate * length,
        first_batch_seconds=max(reading.first_batch for reading in readings),
        memory_per_rank=max(reading.anonymous for reading in readings),
        cores=sum(reading.cpu_seconds / reading.seconds for reading in readings),
        cpu_seconds_per_sequence=sum(one.cpu_seconds for one in readings) / sum(one.sequences for one in readings),
        shares={stage: looks[stage] / max(1, looks.total()) for stage in dict.fromkeys(STAGES.values())},
    )


# ----------------------------------------------------------------------------------------------------- in each process


_together: Any = None


def _start(together: Any) -> None:
    global _together
    _together = together
    # Ctrl-C is for the process that started this one; when that is gone, nobody waits for a measurement.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _read(data: DataSettings, masking: MaskingSettings, bench: BenchSettings, rank: int, ranks: int) -> Reading:
    try:
        before, began = _anonymous(), time.perf_counter()
        with _open(data, masking, bench, World(rank, ranks, rank, ranks)) as loader:
            next(loader)
            first_batch = time.perf_counter() - began
            _together.wait()
            with Watch() as watch:
                cpu, began, batches = time.process_time(), time.perf_counter(), 0
                while (seconds := time.perf_counter() - began) < bench.seconds or not batches:
                    next(loader)
                    batches += 1
                cpu = time.process_time() - cpu
            return Reading(first_batch, seconds, cpu, batches * bench.micro_batch, _anonymous() - before, watch.looks)
    except BaseException:
        _together.abort()
        raise


def _open(data: DataSettings, masking: MaskingSettings, bench: BenchSettings, world: World) -> Loader:
    name, part = next(iter(data.parts.items()))  # all folders have one vocabulary
    kind = kind_of(read_manifests(data)[name].tokenizer.kind, part.shards)
    vocabulary = kind.load(shelf_of(part).folder / kind.file)
    stream = Stream(
        data=data,
        masking=masking,
        seed=bench.seed,
        micro_batch=bench.micro_batch,
        world=world,
        special=special_ids(vocabulary),
        random_ids=replacement_ids(vocabulary),
    )
    return build_loader(stream, global_batch=bench.micro_batch * world.world_size, first=0)


class Watch:
    """Looks at the thread named `loader` from time to time, while in `with`, and counts what it finds it at."""

    def __init__(self) -> None:
        self.looks: dict[str, int] = dict.fromkeys(STAGES.values(), 0)
        """How often the thread was found at each stage; not when it waited for its consumer."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _work(self) -> None:
        watched = [thread.ident for thread in threading.enumerate() if thread.name == "loader"]
        while not self._done.wait(INTERVAL):
            frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - there is no public way
            for stage in (stage_of(frames[ident]) for ident in watched if ident in frames):
                if stage is not None:
                    self.looks[stage] += 1


def stage_of(frame: FrameType | None) -> str | None:
    """The stage of the innermost function that belongs to one; None for a thread that waits."""
    if frame is not None and frame.f_globals.get("__name__") == "threading":
        return None
    while frame is not None:
        stage = STAGES.get(frame.f_globals.get("__name__", ""))
        if stage is not None:
            return stage
        frame = frame.f_back
    return None


def _anonymous() -> int:
    """Bytes of this process that are not pages of files."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


# ---------------------------------------------------------------------------------------------------------- the showing


def to_dict(report: Report) -> dict[str, Any]:
    """The report for `--json`."""
    return asdict(report)


def show(report: Report, console: Console) -> None:
    """The report for people."""
    console.print(
        f"{report.shards}: {report.samples:,} samples of {report.length} tokens ({report.format}, {report.masking}), "
        f"micro-batches of {report.micro_batch}; plan ready in {report.plan_seconds:.1f} s",
        soft_wrap=True,
    )
    table = Table("", *(_processes(one.processes) for one in report.measurements))
    for name, *cells in zip(_ROWS, *map(_column, report.measurements), strict=True):
        table.add_row(name, *cells)
    console.print(table)
    most = _processes(report.measurements[-1].processes)
    for fed in report.gpus:
        console.print(
            f"{fed.name} at {fed.rate:,.0f} sequences/s ({fed.source}): {most} "
            f"can feed {fed.gpus:,.1f}; one takes {fed.cores:.1%} of a core",
            soft_wrap=True,
        )
    if not report.gpus:
        console.print(f"no rate is published for length {report.length}: give one with --gpu-rate", soft_wrap=True)


_ROWS = ("tokens/s", "sequences/s", "first batch", "memory a rank", "cores in use", *dict.fromkeys(STAGES.values()))


def _column(one: Measurement) -> list[str]:
    """What stands beside `_ROWS`."""
    return [
        f"{one.tokens_per_second / 1e6:.1f}M",
        f"{one.sequences_per_second:,.0f}",
        f"{one.first_batch_seconds:.2f} s",
        f"{one.memory_per_rank / 2**20:.0f} MiB",
        f"{one.cores:.2f}",
        *(f"{share:.0%}" for share in one.shares.values()),
    ]


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"
