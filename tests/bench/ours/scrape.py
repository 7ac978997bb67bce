"""Scrapes of the exporter of a run that has started, logged, evaluated and saved."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nezha_ds.observe import server
from nezha_ds.observe.exporter import Exporter, ExporterSettings, open_exporter
from nezha_ds.observe.pulse import Pulse
from nezha_ds.world import World
from tests.bench.scraper import scrape
from tests.observe import samples


def side(folder: str, ranks: int) -> Callable[[], float]:
    """Scrapes, one after another over a connection each."""
    assert folder
    exporter = exporter_of_a_run(ranks)
    return lambda: scrape(exporter.url)


def exporter_of_a_run(ranks: int, **settings: Any) -> Exporter:
    """On a free port, with one event of each kind taken in; all ranks are on its node.

    It may take a whole core: what a scrape costs is asked, not how long one that comes too often has to wait.
    """
    server.SHARE = 1.0
    world = World(world_size=ranks, local_world_size=ranks)
    with TemporaryDirectory() as folder:
        pulses = [Pulse.open(Path(folder), replace(world, rank=rank, local_rank=rank)) for rank in range(ranks)]
    exporter = open_exporter(ExporterSettings(port=0, linger_seconds=0, **settings), world, "bench", pulses[0])
    assert exporter
    of_ranks = {"rank_busy_seconds": (1.0,) * ranks, "rank_memory": (samples.memory(),) * ranks}
    for event in (samples.start(), samples.record(**of_ranks), samples.evaluation(), samples.save()):
        exporter.update(event)
    for pulse in pulses:
        pulse.close()
    return exporter
