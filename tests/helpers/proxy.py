"""A proxy in front of a real HTTP server that counts what passes and breaks what a test asks it to break."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote

Fault = Literal["flip", "cut", "reset", "error", "stall", "slow", "hold"]
"""One bit of the body turned; the body's first half and then the end; or a TCP reset; 500 for an answer; no answer for
STALL seconds; the body at SLOW bytes a second; its first bytes, and no more while the proxy runs."""
STALL = 3.0
SLOW = 2 << 20
CHUNK = 1 << 16


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    """`/bucket/key`, without parameters."""
    range: str


Rule = Callable[[Request, int], Fault | None]
"""What to break, given the request and how often its path and range were asked for before."""


@dataclass
class Proxy:
    """A running proxy; `rule` may be set while it runs."""

    port: int
    upstream: int
    rule: Rule = lambda request, before: None
    log: list[Request] = field(default_factory=list)
    sent: int = 0
    """Bytes of bodies handed to clients."""
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def parameters(self) -> str:
        """What to add to an s3:// URI."""
        return f"?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def gets(self, name: str) -> list[Request]:
        """The requests for the contents of objects whose key ends with `name`."""
        return [request for request in self.log if request.method == "GET" and request.path.endswith(name)]


@contextmanager
def run(upstream: int) -> Iterator[Proxy]:
    """A proxy on a free port in front of a port of this machine, until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    proxy = Proxy(server.server_address[1], upstream)
    server.proxy = proxy  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the default of 5, a client that finds it full tries again after a second


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        request = Request(self.command, unquote(self.path.split("?")[0]), self.headers.get("Range", ""))
        fault = proxy.rule(request, proxy.log.count(request))
        proxy.log.append(request)
        if fault == "error":
            self.send_error(500)
            return
        if fault == "stall":
            time.sleep(STALL)
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream)
        upstream.request(self.command, self.path, headers=dict(self.headers.items()))
        answer = upstream.getresponse()
        body = b"" if self.command == "HEAD" else answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(body)))
        self.end_headers()
        self._send(body, fault, proxy)

    do_HEAD = do_GET  # noqa: N815

    def _send(self, body: bytes, fault: Fault | None, proxy: Proxy) -> None:
        if fault == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        for start in range(0, len(body), CHUNK):
            if fault in ("cut", "reset") and 2 * start >= len(body):
                break
            self.wfile.write(body[start : start + CHUNK])
            proxy.sent += len(body[start : start + CHUNK])
            if fault == "slow":
                time.sleep(CHUNK / SLOW)
            if fault == "hold":
                proxy.ended.wait()
        if fault in ("cut", "reset"):
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR) if fault == "cut" else self.connection.close()
            self.close_connection = True

    def handle(self) -> None:
        # The client goes away, as clients that are killed do; or we hang up on it.
        with suppress(OSError, ValueError):
            super().handle()

    def log_message(self, *arguments: object) -> None:
        pass
