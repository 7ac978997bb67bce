"""Scrapes of the exporter of a run that has started, logged, evaluated and saved."""

from collections.abc import Callable

from nezha_ds.observe.exporter import Exporter, ExporterSettings, open_exporter
from nezha_ds.world import World
from tests.bench.scraper import scrape
from tests.observe import samples


def side(folder: str) -> Callable[[], float]:
    """Scrapes, one after another over a connection each."""
    assert folder
    exporter = exporter_of_a_run()
    return lambda: scrape(exporter.url)


def exporter_of_a_run() -> Exporter:
    """On a free port, with one event of each kind taken in."""
    exporter = open_exporter(ExporterSettings(port=0), World(), run="bench")
    assert exporter
    for event in (samples.start(), samples.record(), samples.evaluation(), samples.save()):
        exporter.update(event)
    return exporter
