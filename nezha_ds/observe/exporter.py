"""The metrics of a node for Prometheus, from local rank 0: over HTTP, and as files where a recipe asks for them.

The training thread writes events into a `Board`, which a scrape reads. Nothing is measured or copied from a device for
a scrape. Which module does what:

    server.py     connections, and what keeps them from harming the run
    request.py    HTTP
    access.py     TLS, client certificates, tokens; passwords.py
    pages.py      /metrics, /healthz and /readyz; health.py
    breath.py     the last scrape
    targets.py    the file by which Prometheus finds the node
    textfile.py   the file for node_exporter

The server binds to the loopback unless told otherwise.
"""

import logging
import socket
from pathlib import Path

from pydantic import Field

from nezha_ds.errors import LaunchError
from nezha_ds.files import make_folder
from nezha_ds.observe.access import Access, AccessSettings, check_access, warn_of_exposure
from nezha_ds.observe.board import Board
from nezha_ds.observe.breath import BreathSettings, LastBreath
from nezha_ds.observe.events import Event
from nezha_ds.observe.health import HealthSettings
from nezha_ds.observe.kept import KeptFile
from nezha_ds.observe.metrics import TABLE
from nezha_ds.observe.pages import Pages
from nezha_ds.observe.pulse import Pulse
from nezha_ds.observe.server import Server, listen
from nezha_ds.observe.targets import TargetsSettings, announced, keep_target, target
from nezha_ds.observe.textfile import TextfileSettings, keep_textfile
from nezha_ds.observe.values import values_of_beats
from nezha_ds.world import World, variable

log = logging.getLogger(__name__)

PORTS_TRIED = 16
"""Ports tried one after another before the system may choose any."""


class ExporterSettings(AccessSettings, HealthSettings, TargetsSettings, TextfileSettings, BreathSettings):
    """Where Prometheus finds the run. See docs/monitoring.md."""

    enabled: bool = True
    """Whether to serve /metrics, /healthz and /readyz; a textfile is kept without them too."""
    host: str = "127.0.0.1"
    """Address to bind to; "0.0.0.0" lets other machines scrape."""
    # 9400, beside which other exporters live, is DCGM's on every GPU node; 29400 and 29500 are torch's.
    port: int = Field(default=29600, ge=0, le=65535)
    """Port; the next free one if it is taken, any free one for 0."""


def check_exporter(settings: ExporterSettings) -> None:
    """ConfigError or LaunchError for what can be seen to be wrong before ranks meet."""
    if settings.enabled:
        check_access(settings)
        _made(settings.targets)
    _made(settings.textfile)


def open_exporter(settings: ExporterSettings, world: World, run: str, pulse: Pulse) -> "Exporter | None":
    """The node's exporter; None on ranks that have none. LaunchError when the address cannot be bound at all."""
    if not world.is_node_main or not (settings.enabled or settings.textfile):
        return None
    # Series of the whole run come from rank 0 alone: a sum over all targets must not count them once per node.
    table = TABLE if world.is_main else tuple(metric for metric in TABLE if metric.per == "node")
    board = Board(run, table, lambda: values_of_beats(pulse.rows(), pulse.own))
    return Exporter(settings, world, run, board, pulse)


class Exporter:
    """The observer that shows a `Board` to whoever watches the run, without ever holding it up."""

    url = ""
    """Of /metrics; empty without a server."""

    def __init__(self, settings: ExporterSettings, world: World, run: str, board: Board, pulse: Pulse) -> None:
        self._board = board
        self._breath = LastBreath(settings.linger_seconds)
        self._parts: list[KeptFile | Server | Access] = []
        """What is closed, in this order: whoever finds the node by a file finds it there."""
        if settings.enabled:
            self._serve(settings, world, run, pulse)
        self._textfile = keep_textfile(settings.textfile, run, world, board) if settings.textfile else None
        if self._textfile:
            self._parts.append(self._textfile)
            log.info("metrics are written to %s", self._textfile.path)

    def _serve(self, settings: ExporterSettings, world: World, run: str, pulse: Pulse) -> None:
        access, listener = Access(settings), _bind(settings)
        port = listener.getsockname()[1]
        server = Server(listener, Pages(self._board, pulse, settings, access, self._breath))
        self.url = _url(settings, port)
        _tell(settings, self.url, port)
        if settings.targets:
            labels = {"run": run, "job_id": variable("SLURM_JOB_ID"), "node": str(world.node)}
            where = announced(settings.host, settings.announce)
            content = target(where, port, labels, tls=settings.certificate is not None)
            self._parts.append(keep_target(settings.targets, run, world, content))
        self._parts += [server, access]

    def update(self, event: Event) -> None:
        """Show one event from now on."""
        self._board.update(event)
        if self._textfile:
            self._textfile.hasten()

    def close(self) -> None:
        """Wait for a last scrape, take the files away and free the port. A scrape under way is cut off."""
        self._breath.wait()
        for part in self._parts:
            part.close()


def _bind(settings: ExporterSettings) -> socket.socket:
    """A listening socket on the port asked for, or the next free one, or any."""
    beyond = range(settings.port + 1, min(settings.port + PORTS_TRIED, 65536)) if settings.port else ()
    reason = ""
    for port in (settings.port, *beyond, 0):
        try:
            return listen(settings.host, port)
        except OSError as error:
            # create_server adds the address, which is told below.
            reason = str(error.strerror).partition(" (while")[0]
    raise LaunchError(
        f"the exporter cannot bind to {settings.host}:{settings.port} ({reason}); "
        "set exporter.host to an address of this machine, or exporter.enabled to false"
    )


def _url(settings: ExporterSettings, port: int) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.certificate else 'http'}://{host}:{port}/metrics"


def _tell(settings: ExporterSettings, url: str, port: int) -> None:
    if port != settings.port and settings.port:
        log.warning("port %d is taken; metrics are at %s", settings.port, url)
    else:
        log.info("metrics are at %s", url)
    warn_of_exposure(settings, settings.host)


def _made(folder: Path | None) -> None:
    if folder:
        make_folder(folder)
