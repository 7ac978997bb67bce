"""Where ranks tell rank 0 what they found, before any process group exists that could hang.

One TCPStore, served by rank 0 at MASTER_ADDR:MASTER_PORT. Each rank puts its word under its own name, rank 0 collects
those that came within a limit and knows which did not, and announces what all go on with. A round among 1,024 ranks is
2,048 requests to rank 0, about 0.1 s.
"""

import socket
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist

from nezha_ds.errors import LaunchError
from nezha_ds.train.cards import can_listen
from nezha_ds.world import World, variable

POLL_SECONDS = 0.02


class Meeting:
    """One rank's place in it."""

    def __init__(self, world: World, wait: float, seconds: float) -> None:
        """Open it, or come to it within `wait` seconds; LaunchError with the reason when that fails.

        `seconds` is how long one waits for a word.
        """
        self.world, self.seconds, self._wait = world, seconds, wait
        self.host, port = variable("MASTER_ADDR"), variable("MASTER_PORT")
        if not port.isdecimal():
            raise LaunchError(f"MASTER_PORT={port!r} is not a port; set it to a number, the same on every node")
        self.port = int(port)
        self.address = _resolve(self.host)
        self.store: Any = self._serve() if world.is_main else self._come()

    def tell(self, name: str, value: bytes) -> None:
        """Say something to rank 0."""
        self.store.set(f"{name}/{self.world.rank}", value)

    def collect(self, name: str, ranks: Iterable[int], seconds: float | None = None) -> dict[int, bytes]:
        """What those ranks told, by rank, of all that told it within the limit."""
        end, waiting = time.monotonic() + (self.seconds if seconds is None else seconds), list(ranks)
        found: dict[int, bytes] = {}
        while True:
            come = [rank for rank in waiting if self.store.check([f"{name}/{rank}"])]
            found |= {rank: self.store.get(f"{name}/{rank}") for rank in come}
            waiting = [rank for rank in waiting if rank not in found]
            if not waiting or time.monotonic() > end:
                return dict(sorted(found.items()))
            time.sleep(POLL_SECONDS)

    def announce(self, name: str, value: bytes = b"") -> None:
        """Say something to all."""
        self.store.set(f"from 0/{name}", b"." + value)

    def announced(self, name: str) -> bool:
        """Whether rank 0 has said it."""
        return bool(self.store.check([f"from 0/{name}"]))

    def hear(self, name: str) -> bytes:
        """What rank 0 announces; LaunchError when it does not, or is gone."""
        try:
            self.store.wait([f"from 0/{name}"], timedelta(seconds=self.seconds))
            return self.store.get(f"from 0/{name}")[1:]
        except (dist.DistError, RuntimeError) as error:
            raise LaunchError(
                f"rank {self.world.rank} on {node_name()} heard no more of rank 0 while it waited for {name!r} "
                f"({str(error).splitlines()[0][:120]}); rank 0's log tells why"
            ) from None

    def _serve(self) -> Any:
        if not can_listen(self.address):
            raise LaunchError(
                f"MASTER_ADDR={self.host} leads to {self.address}, which is no address of {node_name()}, where rank 0 "
                "runs; set it on every node to rank 0's host"
            )
        try:
            return self._store("127.0.0.1", is_master=True)
        except (dist.DistError, RuntimeError) as error:
            raise LaunchError(
                f"rank 0 cannot listen on port {self.port} ({str(error).splitlines()[0][:120]}); end what holds it, or "
                "set MASTER_PORT to another on every node"
            ) from None

    def _come(self) -> Any:
        problem = self._knock()
        if not problem:
            try:
                return self._store(self.address, is_master=False)
            except (dist.DistError, RuntimeError) as error:
                problem = str(error).splitlines()[0][:120]
        loop = " (this host itself: see /etc/hosts)" if self.address.startswith("127.") else ""
        raise LaunchError(
            f"rank {self.world.rank} on {node_name()} does not reach rank 0 within {self._wait:g} s: MASTER_ADDR="
            f"{self.host} leads to {self.address}{loop}, port {self.port}: {problem}; set MASTER_ADDR on every node to "
            "an address of rank 0's host that all reach, and see that no firewall closes the port"
        )

    def _knock(self) -> str:
        """Why rank 0's port does not open within the limit, or nothing when it does."""
        end = time.monotonic() + self._wait
        while True:
            try:
                with socket.create_connection((self.address, self.port), timeout=min(5.0, self._wait)):
                    return ""
            except OSError as error:
                if time.monotonic() > end:
                    return error.strerror or str(error)
                time.sleep(0.1)

    def _store(self, host: str, is_master: bool) -> Any:
        limit = timedelta(seconds=self.seconds)
        return cast(Any, dist).TCPStore(
            host, self.port, self.world.world_size, is_master, limit, wait_for_workers=False
        )


def node_name() -> str:
    """How people call this node: Slurm's name for it, or the host's."""
    return variable("SLURMD_NODENAME") or socket.gethostname()


def _resolve(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise LaunchError(
            f"MASTER_ADDR={host} leads nowhere on {node_name()} ({error.strerror}); set it to rank 0's host, as every "
            "node can resolve it, or to its address"
        ) from None
