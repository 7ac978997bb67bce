"""What being watched costs a run of two ranks, apart from the steps that it watches.

In each step two marks in the pulse and the clock around two micro-batches, one of which adds gradients up; every 20
steps the ranks' memory, one round between two real ranks, a record into the board, and a whole scrape, which in a run
comes every 15 s and in another thread.
"""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import torch
import torch.distributed as dist

from nezha_ds.observe.exporter import ExporterSettings, open_exporter
from nezha_ds.observe.pulse import Pulse
from nezha_ds.train.busy import Busy, HostClock
from nezha_ds.train.memory import Memory
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World
from tests.bench.scraper import read
from tests.observe import samples

STEPS, LOG_EVERY = 200, 20
NUMBERS = 24
"""Of a rank in a round: what a record of two objectives and four texts sends."""


def side(batch: int) -> Callable[[], float]:
    """Samples: those of STEPS steps of a batch."""
    meeting = Path(mkdtemp()) / "meeting"
    multiprocessing.get_context("spawn").Process(target=_partner, args=(meeting,), daemon=True).start()
    world = _join(0, meeting)
    ranks, pulse, memory = Ranks(world), Pulse.open(meeting, world), Memory(torch.device("cpu"))
    pulse.hide()
    exporter = open_exporter(ExporterSettings(port=0, linger_seconds=0), world, "bench", pulse)
    assert exporter
    exporter.update(samples.start())
    busy = Busy(HostClock())
    reduce = busy.without(lambda: None)
    row = torch.zeros(NUMBERS, dtype=torch.float64)

    def run() -> float:
        for step in range(1, STEPS + 1):
            pulse.mark("training", step)
            for _ in range(2):
                with busy:
                    reduce()
            busy.settle()
            pulse.mark("training", step + 1)
            if step % LOG_EVERY == 0:
                held, _ = memory.read(), ranks.rows(row)
                exporter.update(samples.record(step, rank_memory=(held, held), rank_busy_seconds=(busy.take(), 1.0)))
                read(exporter.url)
        return STEPS * batch

    return run


def _partner(meeting: Path) -> None:
    """The other rank, there for as long as this one."""
    ranks = Ranks(_join(1, meeting))
    while True:
        ranks.rows(torch.zeros(NUMBERS, dtype=torch.float64))


def _join(rank: int, meeting: Path) -> World:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    return World(rank=rank, world_size=2, local_rank=rank, local_world_size=2)
