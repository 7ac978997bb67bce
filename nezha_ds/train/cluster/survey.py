"""What the ranks of `nezha-ds doctor --cluster` tell rank 0: measurements as plain values, without any judgement.

Each class is what one phase of examine.py found on one rank; a `Survey` is all of it. Times are seconds, sizes bytes,
rates bytes or operations a second. Everything travels as JSON.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from nezha_ds.train.cards import Card
from nezha_ds.train.doctor import Finding


@dataclass(frozen=True)
class Arrival:
    """Who came."""

    rank: int
    local_world_size: int
    node: int
    """The node's number, where the launcher tells it."""
    host: str
    """The node's name: Slurm's, or the host's."""
    master: str
    """The address to which rank 0's name leads here."""
    address: str
    """Its own address on the way there."""


@dataclass(frozen=True)
class Machine:
    """What a rank has, without asking anybody."""

    software: dict[str, str]
    """Versions and fingerprints that must be the same everywhere, by name."""
    cores: tuple[int, ...]
    """Those that it may run on, by number."""
    threads: int
    """How many it will run."""
    memory: int
    """Available to all ranks of the node."""
    temporary: int
    """Free in the temporary folder."""
    shm: int
    """Free in /dev/shm."""
    open_files: int
    """ulimit -n"""
    locked_memory: int | None
    """ulimit -l; None: unlimited."""
    infiniband: bool
    findings: tuple[Finding, ...] = ()
    """Of the checks of `nezha-ds doctor` that every node needs, those that are not ok; local rank 0's only."""


@dataclass(frozen=True)
class Gpu:
    """What the driver says of a rank's GPU."""

    name: str
    free: int
    total: int
    uncorrected: int = 0
    """ECC errors since the driver was loaded that could not be corrected."""
    remapping: bool = False
    """Whether rows of its memory wait to be replaced."""
    slowed: tuple[str, ...] = ()
    """Why its clock is held down at this moment: heat, power."""


@dataclass(frozen=True)
class Compute:
    """Matrix products on a rank's device."""

    rate: float
    """Operations a second, of the best of several."""
    correct: bool
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Listener:
    """Where a node's local rank 0 answers: on the address that gloo will take there."""

    card: Card
    chosen_by: str
    """What led gloo to this address: a setting or the host's name."""
    port: int
    token: str
    """What it answers, so that nobody else is taken for it."""


@dataclass(frozen=True)
class Clock:
    """Another node's clock as rank 0 sees it."""

    offset: float
    """Ahead of rank 0's."""
    error: float
    """The offset may be so much more or less: half of the round trip."""


@dataclass(frozen=True)
class Network:
    """One node beside the others; local rank 0's only."""

    card: Card
    """Towards rank 0; rank 0's own towards the next node."""
    unreachable: dict[int, str] = field(default_factory=dict)
    """Nodes, by their first rank, that did not answer at the address that gloo will take, and why."""
    clocks: dict[int, Clock] = field(default_factory=dict)
    """Of the other nodes, by their first rank; rank 0's only."""
    settings: dict[str, str] = field(default_factory=dict)
    """GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, where set."""


@dataclass(frozen=True)
class FolderUse:
    """The run's folder from one node; local rank 0's only."""

    free: int = 0
    problem: str = ""
    """Why it cannot be used as a run will use it: the operation and the system's answer."""
    rate: float = 0.0
    """Of writing and syncing a file."""
    sync: float = 0.0
    """A small file and its folder, the slowest of several."""
    seen_by_main: float | None = None
    """From this node's word that it wrote until rank 0 read it; None: never."""
    seen: float | None = None
    """From rank 0's word that it replaced a file, or renamed a folder, until this node saw it; None: never."""
    torn: int = 0
    """Reads, while rank 0 replaced a file again and again, that found none, half of one, or one that was older."""
    lock: str = "held"
    """Whether rank 0's lock was seen here: held, ignored, or why there is none."""


@dataclass(frozen=True)
class Link:
    """Data sent to and fro between this rank and one on another node."""

    peer: int
    rate: float


@dataclass(frozen=True)
class Reduction:
    """All-reduce of one size: its bus bandwidth, as nccl-tests define it."""

    bytes: int
    rate: float


@dataclass(frozen=True)
class Traffic:
    """Collectives between all ranks."""

    wrong: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By precision and size, the ranks whose share of the sum came out wrong here, as `traffic.wrong_shares` tells."""
    reductions: tuple[Reduction, ...] = ()
    inside: Reduction | None = None
    """Among the ranks of this node."""
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Farewell:
    """At the end."""

    clock_step: float
    """How much the wall clock was set meanwhile: its advance less that of the monotonic clock."""


@dataclass(frozen=True)
class Node:
    """The ranks of one host."""

    name: str
    ranks: tuple[int, ...]

    @property
    def main(self) -> int:
        """The first of them."""
        return self.ranks[0]


@dataclass
class Survey:
    """Everything that was told, by rank."""

    world_size: int
    arrivals: dict[int, Arrival] = field(default_factory=dict)
    machines: dict[int, Machine] = field(default_factory=dict)
    computes: dict[int, Compute] = field(default_factory=dict)
    listeners: dict[int, Listener] = field(default_factory=dict)
    networks: dict[int, Network] = field(default_factory=dict)
    folders: dict[int, FolderUse] = field(default_factory=dict)
    traffics: dict[int, Traffic] = field(default_factory=dict)
    farewells: dict[int, Farewell] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    """Ranks that fell out, and where."""
    folder: str = ""
    """Where files were tried."""
    expected: dict[int, str] = field(default_factory=dict)
    """The node of each rank, where the launcher tells it beforehand."""

    @property
    def nodes(self) -> list[Node]:
        """Those that came, by their first rank."""
        return nodes_of(self.arrivals.values())

    @property
    def missing(self) -> list[int]:
        """Ranks that did not come."""
        return [rank for rank in range(self.world_size) if rank not in self.arrivals]


def nodes_of(arrivals: Iterable[Arrival]) -> list[Node]:
    """Ranks by host. Two that the launcher counts apart are apart, even under one name."""
    found: dict[tuple[str, int], list[int]] = {}
    for arrival in sorted(arrivals, key=lambda one: one.rank):
        found.setdefault((arrival.host, arrival.node), []).append(arrival.rank)
    hosts = [host for host, _ in found]
    return [
        Node(host if hosts.count(host) == 1 else f"{host}#{number}", tuple(ranks))
        for (host, number), ranks in found.items()
    ]


def median_of_others(values: dict[int, float], own: int) -> float | None:
    """What the others have, so that one's own value does not move its own measure; None without others."""
    others = [value for key, value in values.items() if key != own]
    return statistics.median(others) if others else None
