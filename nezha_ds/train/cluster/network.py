"""Which card each node uses, whether the others reach it there, and how far apart the nodes' clocks are.

gloo, which carries control between ranks on any device, takes GLOO_SOCKET_IFNAME's card, which rendezvous.py sets where
the user has not and it can be found, or else the address to which the host's own name leads. Where that is a loopback
or the wrong card, ranks wait for each other until their time-out says something about a broken pipe. So each node
listens at just that address, and every other node knocks there: 128 nodes are 16,256 connections, 127 a node. An answer
carries a token, as on a loopback one would reach oneself.
"""

import secrets
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from nezha_ds.train.cards import Card, address_towards, can_listen, card_of, ipv4_of
from nezha_ds.train.cluster.survey import Clock, Listener, Network
from nezha_ds.world import variable

KNOCK_SECONDS = 10.0
"""Three lost packets: the kernel sends a connection's first again after 1, 3 and 7 s."""
ROUNDS = 8
"""Round trips by which a clock is read: the quickest counts."""
KNOCKS_AT_ONCE = 64
TOKEN_BYTES = 8
SETTINGS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def address_of_gloo() -> tuple[str, str]:
    """The address that gloo will take on this host, and what leads it there: as torch chooses, in its order.

    LookupError for a card that is not there.
    """
    if names := variable("GLOO_SOCKET_IFNAME"):
        name = names.split(",")[0]
        if address := ipv4_of(name):
            return address, f"GLOO_SOCKET_IFNAME={names}"
        raise LookupError(f"GLOO_SOCKET_IFNAME={names}: there is no such card with an address here")
    host = socket.gethostname()
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return "127.0.0.1", f"host name {host} leads nowhere"
    return next(filter(can_listen, found), "127.0.0.1"), f"host name {host}"


class Echo(socketserver.ThreadingTCPServer):
    """Answers whoever knocks with its token and the time, until it is closed."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        """Listen on gloo's address and a free port; OSError or LookupError when that cannot be."""
        address, why = address_of_gloo()
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), _Answer)
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.listener = Listener(card_of(address), why, self.server_address[1], self.token.hex())
        threading.Thread(target=self.serve_forever, name="echo", daemon=True).start()


class _Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Echo)
        with suppress(OSError):  # whoever asked hung up
            while self.request.recv(1):
                self.request.sendall(self.server.token + struct.pack("!d", time.time()))


def knock(listener: Listener) -> Clock:
    """Reach a node's echo and read its clock; OSError with the reason when nobody answers, or somebody else."""
    with socket.create_connection((listener.card.address, listener.port), timeout=KNOCK_SECONDS) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return min((_round(link, listener) for _ in range(ROUNDS)), key=lambda clock: clock.error)


def look_around(own: int, listeners: Mapping[int, Listener], towards: str) -> Network:
    """Knock at every other node, by its first rank. `towards` is an address of another, rank 0's if need be."""
    others = {rank: listener for rank, listener in listeners.items() if rank != own}
    unreachable: dict[int, str] = {}
    clocks: dict[int, Clock] = {}

    def visit(rank: int) -> None:
        try:
            clocks[rank] = knock(others[rank])
        except OSError as error:
            unreachable[rank] = error.strerror or str(error)

    if others:
        with ThreadPoolExecutor(KNOCKS_AT_ONCE) as pool:
            list(pool.map(visit, others))
    return Network(
        card=_card_towards(towards),
        unreachable=dict(sorted(unreachable.items())),
        clocks={} if own else dict(sorted(clocks.items())),
        settings={name: value for name in SETTINGS if (value := variable(name))},
    )


def _card_towards(address: str) -> Card:
    try:
        return card_of(address_towards(address))
    except OSError:
        return Card("", "", 0)


def _round(link: socket.socket, listener: Listener) -> Clock:
    began = time.time()
    link.sendall(b"?")
    answer = b""
    while len(answer) < TOKEN_BYTES + 8:
        more = link.recv(TOKEN_BYTES + 8 - len(answer))
        if not more:
            raise ConnectionError("it hung up")
        answer += more
    # By one clock alone: so the error holds, however long this process was kept from running in between.
    half = (time.time() - began) / 2
    if answer[:TOKEN_BYTES].hex() != listener.token:
        raise ConnectionError("somebody else answers there")
    return Clock(struct.unpack("!d", answer[TOKEN_BYTES:])[0] - (began + half), half)
