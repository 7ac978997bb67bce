"""What a verdict on a cluster is: a row for each node, a cell for each look at it, and notes with their cures."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from nezha_ds.train.cluster.survey import Link, Node, Survey, median_of_others
from nezha_ds.train.doctor import DISK_FAILURE, DISK_WARNING, GIB, MEMORY_WARNING, Status

MIB = 1 << 20
SEVERITY: tuple[Status, ...] = ("ok", "warning", "failure")


@dataclass(frozen=True)
class Limits:
    """What is still fit."""

    slow: float = 0.5
    """Of the median of the others: all ranks wait for the slowest, so one node at half speed halves the run."""
    clock_warning: float = 1.0
    """Seconds: logs of several nodes no longer read in order."""
    clock_failure: float = 30.0
    """Seconds: alerts compare our timestamps with Prometheus's clock; S3 refuses requests 900 off, Kerberos 300."""
    clock_step: float = 0.5
    """Seconds that a clock may be set in half a minute; a clock that is steered moves by 0.015 (adjtimex(2))."""
    seen: float = 3.0
    """Seconds: more than NFS's shortest memory of a file's size and time (acregmin)."""
    sync: float = 1.0
    """Seconds: a checkpoint syncs some ten files and folders one after another."""
    disk_warning: int = DISK_WARNING
    disk_failure: int = DISK_FAILURE
    """Bytes in the run's folder: a checkpoint of NEZHA-base has 1.2 GB, and keep_last = 2 has three at once."""
    temporary: int = GIB
    """Bytes in the temporary folder: compilers."""
    shm: int = GIB
    """Bytes in /dev/shm where GPUs share a node: what NCCL's manual asks for; containers begin with 64 MB."""
    memory: int = MEMORY_WARNING
    """Bytes a rank: NEZHA-base takes 16 a parameter, 1.6 GB, and half as much again while it saves."""
    gpu_free: float = 0.9
    """Of a GPU's memory: less, and somebody else computes there."""
    open_files: int = 1024
    """And four for every rank: gloo's connections of two groups, and theirs of the devices."""
    locked_memory: int = 64 * MIB
    """Bytes with InfiniBand: it registers what it sends; 64 KiB and 8 MiB are usual limits, NCCL asks for none."""


@dataclass(frozen=True)
class Note:
    """What is wrong, and what mends it."""

    status: Status
    what: str
    cure: str


@dataclass(frozen=True)
class Cell:
    """One place of the table."""

    text: str
    notes: tuple[Note, ...] = ()

    @property
    def status(self) -> Status:
        """Of its worst note."""
        return worst(note.status for note in self.notes)


@dataclass(frozen=True)
class Row:
    """One node."""

    node: Node
    cells: dict[str, Cell]

    @property
    def status(self) -> Status:
        """Of its worst cell."""
        return worst(cell.status for cell in self.cells.values())


@dataclass(frozen=True)
class Verdict:
    """Of the whole cluster."""

    survey: Survey
    rows: tuple[Row, ...]
    notes: tuple[Note, ...]
    """What concerns no single node that came."""

    @property
    def bad(self) -> list[str]:
        """The names of nodes that failed."""
        return [row.node.name for row in self.rows if row.status == "failure"]

    @property
    def fit(self) -> bool:
        """Whether a run may begin."""
        return not self.bad and worst(note.status for note in self.notes) != "failure"


@dataclass(frozen=True)
class View:
    """A survey and the limits, with what columns ask for at every node, computed once."""

    survey: Survey
    limits: Limits

    @cached_property
    def nodes(self) -> list[Node]:
        """Those that came."""
        return self.survey.nodes

    @cached_property
    def names(self) -> dict[int, str]:
        """Rank to the name of its node."""
        return {rank: node.name for node in self.nodes for rank in node.ranks}

    @cached_property
    def best_links(self) -> dict[int, float]:
        """Bytes a second of each node's better link, all its ranks together, by its first rank."""
        rates: dict[int, dict[str, float]] = {}
        for node in self.nodes:
            for link in (link for rank in node.ranks for link in self._links(rank)):
                own = rates.setdefault(node.main, {})
                own[self.names[link.peer]] = own.get(self.names[link.peer], 0.0) + link.rate
        return {main: max(own.values()) for main, own in rates.items()}

    def _links(self, rank: int) -> tuple[Link, ...]:
        return self.survey.traffics[rank].links if rank in self.survey.traffics else ()

    @cached_property
    def inside(self) -> dict[int, float]:
        """Bus bandwidth among the ranks of each node, by its first rank."""
        traffics = {node.main: self.survey.traffics.get(node.main) for node in self.nodes}
        return {main: one.inside.rate for main, one in traffics.items() if one and one.inside}

    @cached_property
    def rates(self) -> dict[int, float]:
        """Operations a second, by rank."""
        return {rank: one.rate for rank, one in self.survey.computes.items()}

    @cached_property
    def blamed(self) -> list[int]:
        """The ranks to which wrong sums lead.

        Where only some ranks see wrong sums, those, as the sums were right on their way elsewhere. Where all see the
        same, those whose whole shares are wrong. What is wrong everywhere and scattered over shares leads to nobody.
        """
        found = {rank: one.wrong for rank, one in sorted(self.survey.traffics.items())}
        seeing = [rank for rank, wrong in found.items() if wrong]
        if len(seeing) < len(found):
            return seeing
        first = next(iter(found.values()), {})
        if any(wrong != first for wrong in found.values()):
            return []
        whole = sorted({rank for shares in first.values() for rank in shares if rank >= 0})
        return whole if len(whole) < max(2, len(found)) else []

    @cached_property
    def mtu(self) -> int:
        """That of most nodes' cards."""
        return int(most(str(one.card.mtu) for one in self.survey.networks.values()))

    @cached_property
    def ranks_of_a_node(self) -> int:
        """How many most nodes have."""
        return int(most(str(len(node.ranks)) for node in self.nodes))

    @cached_property
    def usual(self) -> dict[str, str]:
        """What most ranks have of each piece of software; of equally many, what the lowest rank has."""
        machines = [machine for _, machine in sorted(self.survey.machines.items())]
        names = dict.fromkeys(name for machine in machines for name in machine.software)
        return {name: most(machine.software.get(name, "none") for machine in machines) for name in names}

    def slow(self, values: dict[int, float], own: int, what: str, cure: str) -> list[Note]:
        """A note when the value is far below the others'."""
        median = median_of_others(values, own)
        if own not in values or median is None or values[own] >= self.limits.slow * median:
            return []
        return [Note("failure", f"{what} at {values[own] / median:.0%} of the others' median", cure)]


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of them; ok of none."""
    return SEVERITY[max(map(SEVERITY.index, statuses), default=0)]


def most(values: Iterable[str]) -> str:
    """The most frequent; of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0]


def span(ranks: Sequence[int]) -> str:
    """Numbers in order for people: 3-5, 9."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def few(names: Sequence[str], most: int = 3) -> str:
    """Names for people, no more than so many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def size_text(number: float) -> str:
    """Bytes for people: 1.5 GiB."""
    unit = min(4, max(0, (int(number).bit_length() - 1) // 10))
    return f"{number / 1024**unit:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def rate_text(number: float, unit: str) -> str:
    """A rate for people: 1.2 GB/s."""
    power = min(5, max(0, (len(str(int(number))) - 1) // 3))
    return f"{number / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}"
