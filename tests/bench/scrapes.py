"""What a scrape of a run of 64 ranks costs, in each way of docs/monitoring.md: `python -m tests.bench.scrapes`.

Medians of SCRAPES scrapes with gzip over a connection each, as a client in the same process sees them; the processor
time of the exporter's thread a scrape, which tells more on a busy machine; and the first one, which with a password
computes scrypt.
"""

import gzip
import http.client
import ssl
import tempfile
import threading
import time
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from nezha_ds.observe.passwords import users_line
from tests.bench.ours.scrape import exporter_of_a_run
from tests.helpers.tls import authority, issue

RANKS, SCRAPES = 64, 200


def scrape(url: str, context: ssl.SSLContext | None, headers: dict[str, str]) -> tuple[float, bytes]:
    """Seconds and bytes of one."""
    began, where = time.perf_counter(), urlsplit(url)
    host = str(where.hostname)
    if where.scheme == "https":
        client = http.client.HTTPSConnection(host, where.port, context=context)
    else:
        client = http.client.HTTPConnection(host, where.port)
    with closing(client):
        client.request("GET", where.path, headers={"Accept-Encoding": "gzip", **headers})
        answer = client.getresponse()
        body = answer.read()
    assert answer.status == 200, answer.status
    return time.perf_counter() - began, body


def measure(
    name: str, context: ssl.SSLContext | None = None, headers: dict[str, str] | None = None, **settings: Any
) -> None:
    """Print a line."""
    with closing(exporter_of_a_run(RANKS, **settings)) as exporter:
        (thread,) = (one.ident for one in threading.enumerate() if one.name == "exporter")
        assert thread
        clock = time.pthread_getcpuclockid(thread)
        first, body = scrape(exporter.url, context, headers or {})
        spent = time.clock_gettime(clock)
        seconds = [scrape(exporter.url, context, headers or {})[0] for _ in range(SCRAPES)]
        own = (time.clock_gettime(clock) - spent) / SCRAPES
    text = gzip.decompress(body)
    print(
        f"{name:13} {1e3 * median(seconds):6.1f} ms, processor {1e3 * own:5.1f} ms; first {1e3 * first:7.1f} ms; "
        f"{text.count(b'{')} series, {len(text) / 1e3:.0f} kB, sent as {len(body) / 1e3:.0f} kB"
    )


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        signer = authority(folder)
        server, client = issue(folder, "server", signer), issue(folder, "client", signer)
        token, users = folder / "token", folder / "users"
        token.write_text("token")
        users.write_text(users_line("prometheus", "password"))
        tls = {"certificate": server.certificate, "key": server.key}
        trusting = ssl.create_default_context(cafile=str(signer.certificate))
        showing = ssl.create_default_context(cafile=str(signer.certificate))
        showing.load_cert_chain(client.certificate, client.key)
        basic = {"Authorization": "Basic " + b64encode(b"prometheus:password").decode()}
        measure("plain")
        measure("token", headers={"Authorization": "Bearer token"}, token_file=token)
        measure("password", headers=basic, users_file=users)
        measure("TLS", trusting, **tls)
        measure("TLS, password", trusting, basic, users_file=users, **tls)
        measure("mutual TLS", showing, client_ca=signer.certificate, **tls)


if __name__ == "__main__":
    main()
