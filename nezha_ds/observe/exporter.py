"""`/metrics` for Prometheus, from local rank 0 of each node.

The training thread writes events into a `Board`, which a scrape reads. Nothing is measured or copied from a device for
a scrape: one costs about 1.3 ms and 7 kB, whatever the model.

The server binds to the loopback unless told otherwise, because prometheus_client's has no authentication. Each request
has a thread of its own and ten seconds of silence; what a stranger sends can neither end nor delay the training.
"""

import logging
import socket
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from pydantic import Field

from nezha_ds.config import Settings
from nezha_ds.errors import LaunchError
from nezha_ds.observe.board import Board
from nezha_ds.observe.events import Event
from nezha_ds.observe.metrics import TABLE
from nezha_ds.world import World

log = logging.getLogger(__name__)

PORTS_TRIED = 16
"""Ports tried one after another before the system may choose any."""


class ExporterSettings(Settings):
    """Where Prometheus finds the run."""

    enabled: bool = True
    """Whether to serve /metrics at all."""
    host: str = "127.0.0.1"
    """Address to bind to; "0.0.0.0" lets other machines scrape, without a password."""
    # 9400, beside which other exporters live, is DCGM's on every GPU node; 29400 and 29500 are torch's.
    port: int = Field(default=29600, ge=0, le=65535)
    """Port; the next free one if it is taken, any free one for 0."""


def open_exporter(settings: ExporterSettings, world: World, run: str) -> "Exporter | None":
    """The node's exporter; None on ranks that have none. LaunchError when the address cannot be bound at all."""
    if not settings.enabled or not world.is_node_main:
        return None
    # Series of the whole run come from rank 0 alone: a sum over all targets must not count them once per node.
    table = TABLE if world.is_main else tuple(metric for metric in TABLE if metric.per == "node")
    return Exporter(settings, Board(run, table))


class Exporter:
    """The observer that serves a `Board` over HTTP from a daemon thread."""

    def __init__(self, settings: ExporterSettings, board: Board) -> None:
        registry = CollectorRegistry()
        registry.register(board)
        self._board = board
        self._server = _bind(settings, make_wsgi_app(registry))
        host, port = self._server.server_address[:2]
        self.url = f"http://[{host}]:{port}/metrics" if ":" in str(host) else f"http://{host}:{port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="exporter", daemon=True)
        self._thread.start()
        if port != settings.port and settings.port:
            log.warning("port %d is taken; metrics are at %s", settings.port, self.url)
        else:
            log.info("metrics are at %s", self.url)

    def update(self, event: Event) -> None:
        """Show one event from the next scrape on."""
        self._board.update(event)

    def close(self) -> None:
        """Free the port. A scrape under way is cut off with the process."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Say nothing: a scrape every few seconds is not news."""


class _Server(ThreadingWSGIServer):
    # Connections that may wait to be accepted. With the default of 5, 50 silent ones made a scrape wait 7 s.
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A request that broke off or made no sense is the client's affair."""
        log.debug("request from %s failed", client_address, exc_info=True)


class _ServerOverIPv6(_Server):
    address_family = socket.AF_INET6


def _bind(settings: ExporterSettings, app: Any) -> WSGIServer:
    """A server on the port asked for, or the next free one, or any."""
    server = _ServerOverIPv6 if ":" in settings.host else _Server
    beyond = range(settings.port + 1, min(settings.port + PORTS_TRIED, 65536)) if settings.port else ()
    reason = ""
    for port in (settings.port, *beyond, 0):
        try:
            return make_server(settings.host, port, app, server_class=server, handler_class=_Handler)
        except OSError as error:
            reason = error.strerror or str(error)
    raise LaunchError(
        f"the exporter cannot bind to {settings.host}:{settings.port} ({reason}); "
        "set exporter.host to an address of this machine, or exporter.enabled to false"
    )
