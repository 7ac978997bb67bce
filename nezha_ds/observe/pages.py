"""What the exporter's server answers: /metrics, /healthz, /readyz, and for all else that there is nothing.

A scrape of a run of 64 ranks costs 5.5 ms of processor time with gzip, and 2 ms more over TLS (tests/bench/scrapes.py).
"""

import gzip
import logging
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus

from prometheus_client.exposition import choose_encoder

from nezha_ds.observe.access import Access
from nezha_ds.observe.board import Board
from nezha_ds.observe.breath import LastBreath
from nezha_ds.observe.health import Health, HealthSettings, healthz, readyz
from nezha_ds.observe.metrics import Value
from nezha_ds.observe.pulse import Pulse
from nezha_ds.observe.request import Reply, Request, say

log = logging.getLogger(__name__)


class Pages:
    """The pages of one node, for one server; what is asked and answered is counted on the board."""

    def __init__(self, board: Board, pulse: Pulse, health: HealthSettings, access: Access, breath: LastBreath) -> None:
        self._board, self._access, self._breath = board, access, breath
        self._health: dict[str, Callable[[], Health]] = {
            "/healthz": lambda: healthz(pulse.rows(), health, time.time()),
            "/readyz": lambda: readyz(pulse.rows(), time.time()),
        }
        self._failed = False

    def context(self) -> ssl.SSLContext | None:
        """What the next connection is encrypted with."""
        return self._access.context()

    async def answer(self, request: Request | HTTPStatus, certified: bool) -> Reply:
        """The reply to a request, or to what was none, counted."""
        try:
            reply = await self._reply(request, certified)
        except Exception:
            # A fault of ours must not end the run that is watched; one is enough to know it.
            log.log(logging.DEBUG if self._failed else logging.ERROR, "a request failed", exc_info=True)
            self._failed = True
            reply = say(HTTPStatus.INTERNAL_SERVER_ERROR)
        path = request.path if isinstance(request, Request) else ""
        page = path[1:] if path in ("/metrics", *self._health) else "other"
        labels = {"path": page, "code": str(int(reply.status))}
        self._board.add([Value("nezha_exporter_requests_total", 1, labels)])
        return reply

    def refuse(self) -> None:
        """Count a connection that had to make room."""
        self._board.add([Value("nezha_exporter_refused_connections_total", 1, {})])

    async def _reply(self, request: Request | HTTPStatus, certified: bool) -> Reply:
        if isinstance(request, HTTPStatus):
            return say(request)
        if request.path != "/metrics" and request.path not in self._health:
            return say(HTTPStatus.NOT_FOUND)
        if request.method != "GET":
            return say(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET")
        if request.path in self._health:
            return say(*self._health[request.path]())
        return await self._access.refusal(request, certified) or self._metrics(request)

    def _metrics(self, request: Request) -> Reply:
        """All series, in the format that the client prefers."""
        began = time.perf_counter()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body, headers = encode(self._board), {}
        if "gzip" in request.headers.get("accept-encoding", ""):
            # The fastest level: 9 takes four times as long for a seventh less.
            body, headers = gzip.compress(body, compresslevel=1, mtime=0), {"Content-Encoding": "gzip"}
        took = Value("nezha_exporter_collect_duration_seconds", time.perf_counter() - began, {})
        self._board.add([took])
        self._breath.scraped(began)
        return Reply(HTTPStatus.OK, body, content_type, headers)
