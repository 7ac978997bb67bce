"""`nezha-ds launch`: this node's ranks, started, told of signals, and answered for.

It does what the `deepspeed` launcher leaves undone. A SIGTERM, SIGINT or SIGUSR1 is passed on to every rank once, and
the exit code tells how the run ended; when one rank ends otherwise than well the others are told to stop, and killed
after a grace; when the launcher is killed, its own code is not 0, and the kernel tells the ranks (`orphan`). It needs
no ssh and no hostfile: each node of a cluster starts it with its own `--node-rank`. As process 1 of a container it
hears signals, which a process without handlers does not there, and reaps what nobody else waits for.

The exit code, the first of these that any rank of this node ended with:

1. 76, 77, 79: diverged, no progress, hung.
2. 128 and the number of a signal that nobody here sent: a rank crashed or was killed, and start-up errors of others
   may come of it.
3. 2: refused.
4. Anything else but 0 and 75, of the rank that ended first.
5. 75: stopped and saved. 0: done, by all ranks.

Ranks have process groups of their own, so that a Ctrl-C reaches them once, through the launcher; a second one kills
them.
The launcher imports no torch: 15 MB, and nothing while it waits.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nezha_ds.errors import ConfigError, Exit, LaunchError
from nezha_ds.world import World, rank_environment, variable

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AWAITED = (*PASSED_ON, signal.SIGCHLD)
PORT = 29500

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a rank ended."""

    code: int
    """Its exit code; the negative number of the signal that killed it."""
    ours: bool = False
    """Whether the launcher had sent that signal."""


def launch(command: Sequence[str], worlds: Sequence[World], master: str | None, grace: float) -> int:
    """Start a program as each rank of this node, and stay until all have ended; the exit code.

    `master` is HOST or HOST:PORT of rank 0, needed on several nodes. `grace` is how many seconds ranks have to end by
    themselves after one of them ended otherwise than well.
    """
    address, port = rendezvous(master, worlds[0])
    # Before the first rank, so that no signal comes too early; ranks start with none blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    node = Node(grace)
    for world in worlds:
        node.start(command, world, rank_environment(world, address, port))
    while node.living:
        node.wait()
    code = exit_code(node.ended)
    log.info("all %d ranks have ended; exit code %d", len(worlds), code)
    return code


def worlds_of(ranks: int, nodes: int, node_rank: int) -> list[World]:
    """The ranks of one node, of as many on each; ConfigError for numbers that cannot be."""
    if not (ranks >= 1 and nodes >= 1 and 0 <= node_rank < nodes):
        raise ConfigError(
            f"--ranks {ranks} --nodes {nodes} --node-rank {node_rank} is impossible; "
            "node ranks go from 0 to below the number of nodes"
        )
    first = node_rank * ranks
    return [World(first + local, ranks * nodes, local, ranks, node_rank) for local in range(ranks)]


def rendezvous(master: str | None, world: World) -> tuple[str, int]:
    """Rank 0's host and port: what was given, MASTER_ADDR and MASTER_PORT, or on one node a port that is free."""
    host, _, port = (master or "").partition(":")
    host, port = host or variable("MASTER_ADDR"), port or variable("MASTER_PORT")
    if world.world_size > world.local_world_size and not host:
        raise LaunchError("several nodes need --master HOST[:PORT], the same on all of them: the host of node rank 0")
    if port and not port.isdecimal():
        raise LaunchError(f"{port!r} is not a port; give --master HOST:PORT with a number, or MASTER_PORT")
    return host or "127.0.0.1", int(port) if port else PORT if host else _free_port()


def exit_code(ended: Iterable[Ended]) -> int:
    """What the ranks' ends, in their order, come to; this file's text has the precedence."""
    ends = list(ended)
    stopped = [end.code == Exit.STOPPED or (end.ours and end.code != -signal.SIGKILL) for end in ends]
    codes = [end.code if end.code >= 0 else 128 - end.code for end in ends]
    for code in (Exit.DIVERGED, Exit.NO_PROGRESS, Exit.HUNG):
        if code in codes:
            return code
    crashed = [code for code, end in zip(codes, ends, strict=True) if end.code < 0 and not end.ours]
    refused = [code for code in codes if code == Exit.REFUSED]
    others = [code for code, stop in zip(codes, stopped, strict=True) if code and not stop]
    stops = [int(Exit.STOPPED)] if any(stopped) else []
    return next(iter((*crashed, *refused, *others, *stops)), int(Exit.DONE))


class Node:
    """The ranks of this node while they live."""

    def __init__(self, grace: float) -> None:
        self.living: dict[int, World] = {}
        """By process id."""
        self.ended: list[Ended] = []
        """In the order in which they ended."""
        self._grace = grace
        self._deadline: float | None = None
        self._sent: set[int] = set()

    def start(self, command: Sequence[str], world: World, environment: dict[str, str]) -> None:
        """One rank more."""
        pid = os.posix_spawn(command[0], list(command), environment, setpgroup=0, setsigmask=())
        self.living[pid] = world
        log.info("rank %d of %d is process %d", world.rank, world.world_size, pid)

    def wait(self) -> None:
        """Until a signal comes or the grace is over; then do what is to be done."""
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        info = signal.sigwaitinfo(AWAITED) if left is None else signal.sigtimedwait(AWAITED, left)
        if info is None:
            log.warning("%d ranks did not end within %g s; killing them", len(self.living), self._grace)
            self._send(signal.SIGKILL)
            self._deadline = None
        elif info.si_signo in PASSED_ON:
            again = info.si_signo == signal.SIGINT and signal.SIGINT in self._sent
            log.warning("%s: %s", signal.Signals(info.si_signo).name, "killing all" if again else "passing it on")
            self._send(signal.SIGKILL if again else info.si_signo)
        self._reap()

    def _reap(self) -> None:
        """Take note of ranks that have ended, and of nobody else's children either."""
        while self.living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if world := self.living.pop(pid, None):
                self._note(world, os.waitstatus_to_exitcode(status))

    def _note(self, world: World, code: int) -> None:
        self.ended.append(Ended(code, ours=-code in self._sent))
        if code and self._deadline is None and self.living:
            log.warning("rank %d ended with %d; telling the others to stop", world.rank, code)
            self._send(signal.SIGTERM)
            self._deadline = time.monotonic() + self._grace

    def _send(self, number: int) -> None:
        self._sent.add(number)
        for pid in self.living:
            # A rank's own children, such as compilers, end with it or are killed with it.
            (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_command(script: str | None, arguments: Sequence[str], doctor: bool = False) -> list[str]:
    """What each rank runs: `nezha-ds pretrain`, `doctor --cluster`, or a script of the user's own."""
    ours = ["doctor", "--cluster"] if doctor else ["pretrain"]
    program = [script] if script else ["-m", "nezha_ds.cli", *ours]
    return [sys.executable, "-u", *program, *arguments]
