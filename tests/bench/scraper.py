"""What Prometheus does to an exporter; standard library only, since it runs in the rivals' environment too."""

from urllib.request import urlopen

SCRAPES = 200


def read(url: str) -> bytes:
    """One scrape."""
    with urlopen(url) as response:
        return response.read()


def scrape(url: str) -> float:
    """SCRAPES scrapes, a connection each."""
    for _ in range(SCRAPES):
        read(url)
    return SCRAPES
