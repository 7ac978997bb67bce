"""An HTTP server in one daemon thread, which no client can fill, hold up or end, nor through it the training.

All connections are an event loop's, so that a client which sends or reads slowly costs a few kilobytes and no thread:

- At most `CONNECTIONS` are open. One more closes the one that was let in first and is not answered yet: a scrape, done
  within milliseconds, gets through a thousand connections that say nothing.
- Each has `REQUEST_SECONDS` from being let in to being closed, TLS, password and farewell included.
- A head is read up to request.HEAD_BYTES, a body never. Each connection carries one request.
- The thread takes at most `SHARE` of a core, which Python's one lock would otherwise take from the training: beyond
  that, new connections wait in the kernel's queue.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from nezha_ds.observe.request import HEAD_BYTES, Reply, Request, parse

CONNECTIONS = 64
REQUEST_SECONDS = 10.0
BACKLOG = 128
"""Connections that may wait to be let in. With 5, 50 silent ones made a scrape wait 7 s."""
SHARE, BURST_SECONDS = 0.1, 1.0
"""A scrape every second is 0.01 of a core; the burst is what a scrape after a quiet time may take at once."""
FAREWELL_SECONDS, FAREWELL_BYTES = 1.0, 1 << 20
"""How long, and how far, a request is read on whose rest is unwanted: closing at once would reset the connection, and
with it the answer on its way."""
CLOSE_SECONDS = 5.0
"""How long the end of the run waits for the thread."""

log = logging.getLogger(__name__)


class Site(Protocol):
    """What is served."""

    def context(self) -> ssl.SSLContext | None:
        """With what the next connection is encrypted, if it is."""
        ...

    async def answer(self, request: Request | HTTPStatus, certified: bool) -> Reply:
        """The reply to a request, or to what was none, by the status that says why.

        `certified`: the client showed a certificate that is good. Never raises.
        """
        ...

    def refuse(self) -> None:
        """A connection was closed without an answer, to make room."""
        ...


class Allowance:
    """How much of a core a thread may take: a share of the time that goes by, and so many seconds at once."""

    def __init__(
        self,
        share: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share, self._burst, self._clock, self._used = share, burst, clock, used
        self._left, self._then, self._spent = burst, clock(), used()

    def wait(self) -> float:
        """Seconds until the thread may go on."""
        now, spent = self._clock(), self._used()
        self._left += self._share * (now - self._then) - (spent - self._spent)
        self._left = min(self._left, self._burst)
        self._then, self._spent = now, spent
        return max(0.0, -self._left / self._share)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address, IPv4 beside IPv6 on "::"; OSError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::")
    # For the connections that it lets in: behind TLS's session tickets, an answer waited 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class Server:
    """Serves a site on a listening socket, which it owns, from now until it is closed."""

    def __init__(self, listener: socket.socket, site: Site) -> None:
        listener.setblocking(False)
        self._listener, self._site = listener, site
        self._open: dict[asyncio.Task[None], None] = {}
        """Connections, in the order in which they were let in."""
        self._loop, self._closed = asyncio.new_event_loop(), asyncio.Event()
        # What strangers do wrong is theirs to know: asyncio would write it to the run's log.
        self._loop.set_exception_handler(lambda _, context: log.debug("%s", context))
        self._thread = threading.Thread(target=self._run, name="exporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Free the port and the thread; what is under way is broken off."""
        self._loop.call_soon_threadsafe(self._closed.set)
        # Unless a file system that holds a secret hangs, which must not hold up the end of the run.
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        with self._listener, asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        accepting = self._loop.create_task(self._accept())
        await self._closed.wait()
        accepting.cancel()

    async def _accept(self) -> None:
        allowance = Allowance(SHARE, BURST_SECONDS)
        while True:
            await asyncio.sleep(allowance.wait())
            try:
                client, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                # Out of file descriptors, or the client is gone again.
                await asyncio.sleep(0.1)
                continue
            self._make_room()
            task = self._loop.create_task(self._attend(client))
            self._open[task] = None
            task.add_done_callback(lambda done: self._open.pop(done, None))

    def _make_room(self) -> None:
        if len(self._open) >= CONNECTIONS:
            first = next(iter(self._open))
            del self._open[first]
            first.cancel()
            self._site.refuse()

    async def _attend(self, client: socket.socket) -> None:
        """One connection, from its handshake to its end."""
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                reader = asyncio.StreamReader(HEAD_BYTES)
                protocol = asyncio.StreamReaderProtocol(reader)
                context = self._site.context()
                transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, client, ssl=context)
                writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
                await self._converse(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError):
            log.debug("a connection broke off", exc_info=True)
        finally:
            if transport:
                transport.abort()
            else:
                client.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request and answer it; EOFError when the client goes without having asked."""
        request = await _read(reader)
        reply = await self._site.answer(request, certified=bool(writer.get_extra_info("peercert")))
        writer.write(reply.to_bytes())
        await writer.drain()
        if reply.status >= HTTPStatus.BAD_REQUEST:
            if writer.can_write_eof():
                writer.write_eof()
            await _hear_out(reader)


async def _read(reader: asyncio.StreamReader) -> Request | HTTPStatus:
    try:
        return parse(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.LimitOverrunError:
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise
        return HTTPStatus.BAD_REQUEST


async def _hear_out(reader: asyncio.StreamReader) -> None:
    """Read the rest of a request that was refused, but not for long."""
    left = FAREWELL_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_SECONDS):
            while left > 0 and (part := await reader.read(1 << 16)):
                left -= len(part)
