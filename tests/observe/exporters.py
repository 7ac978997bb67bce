"""Exporters for tests, and clients that ask them as bytes go over the wire."""

import http.client
import re
import socket
import ssl
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from nezha_ds.observe.exporter import Exporter, ExporterSettings, open_exporter
from nezha_ds.observe.pulse import Pulse
from nezha_ds.world import World


@contextmanager
def exporting(folder: Path, run: str = "demo", world: World | None = None, **chosen: Any) -> Generator[Exporter]:
    """An exporter of a run in `folder`, by default of one rank and on a free port, whose end waits for no scrape."""
    world = world or World()
    with closing(Pulse.open(folder, world)) as pulse:
        exporter = open_exporter(ExporterSettings(**{"port": 0, "linger_seconds": 0, **chosen}), world, run, pulse)
        assert exporter
        with closing(exporter):
            yield exporter


def address(exporter: Exporter) -> tuple[str, int]:
    host, port = re.findall(r"//(.*):(\d+)/", exporter.url)[0]
    return host, int(port)


def ask(
    exporter: Exporter, path: str = "/metrics", context: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, str]:
    """The status of an answer, and what it says."""
    reply = connection(exporter, context)
    with closing(reply):
        reply.request("GET", path, headers=headers)
        answer = reply.getresponse()
        return answer.status, answer.read().decode()


def connection(exporter: Exporter, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    if exporter.url.startswith("https"):
        return http.client.HTTPSConnection(*address(exporter), timeout=600, context=context)
    return http.client.HTTPConnection(*address(exporter), timeout=600)


def exchange(exporter: Exporter, sent: bytes) -> bytes:
    """What comes back for some bytes, up to the end of the connection."""
    with socket.create_connection(address(exporter), timeout=600) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


def receive_all(client: socket.socket) -> bytes:
    """All up to the end, or up to a reset."""
    reply = b""
    while part := _receive(client):
        reply += part
    return reply


def _receive(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 16)
    except ConnectionResetError:
        return b""


def counted(exporter: Exporter, context: ssl.SSLContext | None = None, **headers: str) -> dict[str, float]:
    """Series -> value of the exporter's own metrics, without the label `run`."""
    _, text = ask(exporter, context=context, **headers)
    found = re.findall(r"^nezha_exporter_(\w+)\{(.*?)\} (\S+)$", text, re.MULTILINE)
    return {f"{name} {re.sub(',?run=.*', '', labels)}".strip(): float(value) for name, labels, value in found}
