"""Scrapes of prometheus_client as its manual shows it: the same families and series as instruments of its own."""

from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, start_http_server
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.scraper import scrape


def side(folder: str, ranks: int) -> Callable[[], float]:
    """Scrapes, one after another over a connection each."""
    disable_created_metrics()
    registry = CollectorRegistry()
    for family in text_string_to_metric_families((Path(folder) / f"exposition-{ranks}.txt").read_text()):
        if family.samples:
            KINDS[family.type](family, registry)
    server, _ = start_http_server(0, "127.0.0.1", registry)
    return lambda: scrape(f"http://127.0.0.1:{server.server_port}/metrics")


def _counter(family: Metric, registry: CollectorRegistry) -> None:
    counter = Counter(family.name, family.documentation, list(family.samples[0].labels), registry=registry)
    for sample in family.samples:
        counter.labels(**sample.labels).inc(sample.value)


def _gauge(family: Metric, registry: CollectorRegistry) -> None:
    gauge = Gauge(family.name, family.documentation, list(family.samples[0].labels), registry=registry)
    for sample in family.samples:
        gauge.labels(**sample.labels).set(sample.value)


def _histogram(family: Metric, registry: CollectorRegistry) -> None:
    names = [name for name in family.samples[0].labels if name != "le"]
    # Each series has its own count, and all the same buckets.
    series = [sample.labels for sample in family.samples if sample.name.endswith("_count")]
    buckets = dict.fromkeys(sample.labels["le"] for sample in family.samples if "le" in sample.labels)
    histogram = Histogram(family.name, family.documentation, names, registry=registry, buckets=list(buckets))
    for labels in series:
        histogram.labels(**labels).observe(1.0)


KINDS: dict[str, Callable[[Metric, CollectorRegistry], None]] = {
    "counter": _counter,
    "gauge": _gauge,
    "histogram": _histogram,
}
