"""`nezha-ds doctor --cluster`, as one of its ranks: phases in order, each with a limit, and rank 0's word at the end.

    arrive     who came, over a TCPStore of rank 0's: whoever did not is named, and nothing is waited for any longer
    machine    software, cores, memory, limits; compute: a product's result and rate
    network    which card gloo takes, whether the others reach it there, clocks
    folder     the run's folder from every node
    traffic    sums, all-reduce, links; not where the network phase found that ranks cannot meet
    farewell   whether the clock was set meanwhile

A phase runs in a thread. Where it does not end, the rank says so and goes; where a rank says nothing, rank 0 names it,
with the phase, and leaves out the rest. Half a minute in all, most of it torch being imported.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from nezha_ds.errors import Exit, NezhaError
from nezha_ds.train.cards import address_towards
from nezha_ds.train.cluster import compute, machine, network, shared_folder, traffic
from nezha_ds.train.cluster.expected import expected_nodes
from nezha_ds.train.cluster.judge import judge
from nezha_ds.train.cluster.meeting import Meeting, node_name
from nezha_ds.train.cluster.survey import (
    Arrival,
    Compute,
    Farewell,
    FolderUse,
    Listener,
    Machine,
    Network,
    Node,
    Survey,
    Traffic,
)
from nezha_ds.train.cluster.verdict import Limits, Verdict
from nezha_ds.train.rendezvous import settle_rendezvous
from nezha_ds.world import World, set_rendezvous, threads_per_rank, variable

if TYPE_CHECKING:
    from nezha_ds.train.recipe import Recipe

T = TypeVar("T")
log = logging.getLogger(__name__)

LINGER_SECONDS = 5.0
"""How much longer rank 0 waits for the word of a rank whose phase may last as long as the limit."""
BYE_SECONDS = 30.0
"""How long rank 0 stays at the end for ranks that have not heard the outcome."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    folder: Path
    """Where the run would write."""
    recipe: "Recipe | None" = None
    """Whose resolved form and shards must be the same on every node."""
    wait: float = 60.0
    """Seconds for all ranks to come."""
    limit: float = 60.0
    """Seconds of a phase."""
    size: int = 202 << 20
    """Bytes of the large all-reduce: NEZHA-base's 101M gradients in bf16."""
    limits: Limits = field(default_factory=Limits)


def examine_cluster(request: Request, world: World, show: Callable[[Verdict], None]) -> int:
    """Take part as a rank; rank 0 shows the verdict. 0 when all nodes are fit, `Exit.REFUSED` on every rank otherwise.

    LaunchError on a rank that does not reach rank 0.
    """
    clocks = time.time(), time.monotonic()
    settle_rendezvous(world)
    set_rendezvous(world)
    # Whatever rank 0 may wait for before its next word.
    meeting = Meeting(world, request.wait, request.wait + 2 * request.limit)
    examination = Examination(request, meeting, clocks)
    if world.is_main:
        examination.run()
        verdict = judge(examination.survey, request.limits)
        show(verdict)
        code = int(Exit.DONE if verdict.fit else Exit.REFUSED)
        meeting.announce("outcome", bytes([code]))
        there = [rank for rank in examination.survey.arrivals if rank and rank not in examination.survey.failed]
        meeting.collect("bye", there, BYE_SECONDS)
    else:
        examination.run()
        code = meeting.hear("outcome")[0]
        meeting.tell("bye", b"")
    if examination.stuck:
        # A thread in a collective or a dead file system would keep the process from ending.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class _StoppedError(NezhaError):
    """Rank 0 leaves out the rest."""


class Examination:
    """One rank's way through the phases; on rank 0 the survey fills."""

    def __init__(self, request: Request, meeting: Meeting, clocks: tuple[float, float]) -> None:
        names = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
        self.survey = Survey(
            meeting.world.world_size,
            folder=str(request.folder.absolute()),
            expected=expected_nodes({name: variable(name) for name in names}),
        )
        self.stuck = False
        """Whether a phase never ended here."""
        self._request, self._meeting, self._world = request, meeting, meeting.world
        self._clocks = clocks
        self._nodes: list[Node] = []

    def run(self) -> None:
        """All phases, or as many as can be."""
        with suppress(_StoppedError):
            self._arrive()
            survey, everybody, request = self.survey, range(self._world.world_size), self._request
            look = partial(machine.look, self._world, request.recipe)
            self._phase("machine", Machine, look, everybody, survey.machines)
            multiply = partial(compute.measure, self._world.local_rank, threads_per_rank(self._world))
            self._phase("compute", Compute, multiply, everybody, survey.computes)
            self._network()
            self._folder()
            if self._agree("meet", self._can_meet):
                self._phase("traffic", Traffic, self._exchange, everybody, survey.traffics)
            self._phase("farewell", Farewell, self._leave, everybody, survey.farewells)

    # ----------------------------------------------------------------------------------------------------------- phases

    def _arrive(self) -> None:
        meeting, world, arrivals = self._meeting, self._world, TypeAdapter(Arrival)
        own = Arrival(
            world.rank,
            world.local_world_size,
            world.node,
            node_name(),
            meeting.address,
            address_towards(meeting.address),
        )
        meeting.tell("arrival", arrivals.dump_json(own))
        if world.is_main:
            came = meeting.collect("arrival", range(world.world_size), self._request.wait)
            self.survey.arrivals = {rank: arrivals.validate_json(word) for rank, word in came.items()}
            log.info("%d of %d ranks are here, on %d nodes", len(came), world.world_size, len(self.survey.nodes))
        self._go_on("arrival", not self.survey.missing)
        words = self._agree("nodes", lambda: [[node.name, list(node.ranks)] for node in self.survey.nodes])
        self._nodes = [Node(name, tuple(ranks)) for name, ranks in words]

    def _network(self) -> None:
        """Every node listens, then every node knocks at the others."""
        mains = [node.main for node in self._nodes]
        echo: list[network.Echo] = []

        def listen() -> Listener:
            echo.append(network.Echo())
            return echo[0].listener

        self._phase("listen", Listener, listen, mains, self.survey.listeners)
        heard = self._agree("listeners", lambda: self.survey.listeners)
        listeners = TypeAdapter(dict[int, Listener]).validate_python(heard)
        around = partial(network.look_around, self._world.rank, listeners, self._other())
        self._phase("network", Network, around, mains, self.survey.networks)
        for one in echo:
            one.shutdown()
            one.server_close()

    def _other(self) -> str:
        """The address of another node by which it and rank 0 find each other; rank 0's own where there is none."""
        beyond = [self.survey.arrivals[node.main].address for node in self._nodes[1:]] if self._world.is_main else []
        return beyond[0] if beyond else self._meeting.address

    def _folder(self) -> None:
        """Rank 0 writes, the other nodes read; then rank 0 adds when it saw their files."""
        mains, seen = [node.main for node in self._nodes], dict[int, float]()

        def use() -> FolderUse:
            if not self._world.is_main:
                return shared_folder.read_rank(self._meeting)
            own, found = shared_folder.write_rank(self._meeting, self._request.folder, mains[1:])
            seen.update(found)
            return own

        self._phase("folder", FolderUse, use, mains, self.survey.folders)
        for rank, seconds in seen.items():
            if folder := self.survey.folders.get(rank):
                self.survey.folders[rank] = replace(folder, seen_by_main=seconds)

    def _exchange(self) -> Traffic:
        seconds = self._request.limit / 2
        return traffic.exchange(self._meeting.store, self._world, self._nodes, self._request.size, seconds)

    def _leave(self) -> Farewell:
        wall, steady = self._clocks
        return Farewell((time.time() - wall) - (time.monotonic() - steady))

    def _can_meet(self) -> bool:
        """Whether gloo would find everybody: otherwise all ranks would wait for their time-out."""
        networks = self.survey.networks
        reached = not any(one.unreachable for one in networks.values())
        return reached and self.survey.listeners.keys() == networks.keys() == {node.main for node in self._nodes}

    # --------------------------------------------------------------------------------------------------------- together

    def _phase(
        self, name: str, kind: type[T], action: Callable[[], T], members: Collection[int], found: dict[int, T]
    ) -> None:
        """Do it where this rank is a member; rank 0 collects it. The rest is left out when a rank fell silent."""
        told = TypeAdapter[Any](tuple[kind | None, str])  # pyright: ignore[reportInvalidTypeForm]
        if self._world.rank in members:
            self._meeting.tell(name, told.dump_json(self._within(action)))
        silent: list[int] = []
        if self._world.is_main:
            collected = self._meeting.collect(name, members, self._request.limit + LINGER_SECONDS)
            words = {rank: told.validate_json(word) for rank, word in collected.items()}
            found |= {rank: value for rank, (value, _) in words.items() if value is not None}
            silent = [rank for rank in members if rank not in words]
            self.survey.failed |= {rank: f"{name}: {problem}" for rank, (_, problem) in words.items() if problem}
            self.survey.failed |= dict.fromkeys(silent, f"{name}: it said nothing any more")
        self._go_on(name, not silent)

    def _within(self, action: Callable[[], T]) -> tuple[T | None, str]:
        """What it returns, or what went wrong."""
        outcome: list[tuple[T | None, str]] = []

        def work() -> None:
            try:
                outcome.append((action(), ""))
            except Exception as error:  # what drivers, file systems and torch raise is what we are here to tell
                log.info("%r", error, exc_info=True)
                outcome.append((None, _one_line(error)))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self._request.limit)
        if outcome:
            return outcome[0]
        self.stuck = True
        return None, f"it did not end within {self._request.limit:g} s"

    def _go_on(self, name: str, well: bool) -> None:
        """Rank 0 says whether there is more to do; `_StoppedError` when not."""
        if not self._agree(f"{name} done", lambda: well):
            raise _StoppedError

    def _agree(self, name: str, value: Callable[[], Any]) -> Any:
        """What rank 0 has, on every rank."""
        if self._world.is_main:
            result = value()
            self._meeting.announce(name, TypeAdapter(Any).dump_json(result))
            return result
        return TypeAdapter(Any).validate_json(self._meeting.hear(name))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, NezhaError | OSError | LookupError) else f"{type(error).__name__}: {text}"
