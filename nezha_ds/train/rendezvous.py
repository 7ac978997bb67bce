"""Where the ranks of several nodes meet, and over which network card.

torch wants rank 0's address (MASTER_ADDR), a port that is free there (MASTER_PORT), and for gloo, which carries all
agreements between ranks, a card; left alone gloo takes the card whose address the host's own name has, which on Debian
is 127.0.1.1 and on virtual machines one that leads to no other node. What the user has set stays. Else:

- Slurm's step says which nodes there are. Rank 0 is on the first; its name is resolved, or where names of nodes are no
  names of hosts, the address is srun's own, which in a batch job is the first node. The port comes from the job's
  number.
- MPI can carry a message before torch can: rank 0 tells all addresses of its host, another node tries them, and what
  it reached is taken by all. Costs 0.2 s.
- gloo's card is the one by which the kernel reaches rank 0, and on rank 0's node the one that reaches another node.

On one node nothing of this matters, except under MPI, whose ranks would else meet at a port that another run may have.
"""

import itertools
import logging
import random
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from nezha_ds.errors import LaunchError
from nezha_ds.train.cards import address_towards, card_of, cards
from nezha_ds.world import World, set_default, variable

PORTS = range(10_000, 29_000)
"""Below those that the kernel gives to clients (32768 on), and below the exporter's."""
TRY_SECONDS = 3.0
"""How long one address of rank 0's host is tried."""

log = logging.getLogger(__name__)


def settle_rendezvous(world: World) -> None:
    """Set MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME in the environment, where it lacks them and they can be
    found. Collective under MPI. LaunchError when MPI is needed and not there, or its nodes do not reach rank 0's.
    """
    alone = world.world_size == world.local_world_size
    if variable("SLURM_STEP_NODELIST"):
        _settle_by_slurm(alone)
    elif (variable("OMPI_COMM_WORLD_SIZE") or variable("PMI_SIZE")) and not variable("MASTER_ADDR"):
        _settle_by_mpi(alone)
    if not alone and (card := _card(world)):
        log.debug("gloo talks over %s", card)
        set_default("GLOO_SOCKET_IFNAME", card)


# ------------------------------------------------------------------------------------------------------------- Slurm


def hosts_of(nodelist: str) -> list[str]:
    """The hosts of a Slurm list, in its order: `a[01-03,7],b` → a01 a02 a03 a7 b. `scontrol` would do it, but
    containers lack it.
    """
    hosts: list[str] = []
    # Commas inside brackets separate numbers, all others hosts.
    for pattern in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        parts = re.split(r"\[([^\]]*)\]", pattern)
        choices = [_numbers(part) if index % 2 else [part] for index, part in enumerate(parts)]
        hosts += map("".join, itertools.product(*choices))
    return hosts


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        numbers += [f"{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]
    return numbers


def _settle_by_slurm(alone: bool) -> None:
    first, *_ = hosts_of(variable("SLURM_STEP_NODELIST"))
    address = "127.0.0.1" if alone else first if _addresses(first) else variable("SLURM_LAUNCH_NODE_IPADDR")
    if address:
        set_default("MASTER_ADDR", address)
    set_default("MASTER_PORT", str(PORTS[int(variable("SLURM_JOB_ID", "0")) % len(PORTS)]))


# --------------------------------------------------------------------------------------------------------------- MPI


def _settle_by_mpi(alone: bool) -> None:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, the library that it loads is not
        if alone:
            return
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"MASTER_ADDR is not set, and finding it needs mpi4py ({reason}); `pip install 'nezha-ds[mpi]'`, or export "
            "rank 0's host name: `mpirun -x MASTER_ADDR=HOST`"
        ) from None
    try:
        address, port = meet_by_mpi(MPI.COMM_WORLD)
    finally:
        # Here and not at exit: Open MPI takes an end without it for a crash.
        MPI.Finalize()
    set_default("MASTER_ADDR", address)
    set_default("MASTER_PORT", str(port))


def meet_by_mpi(comm: Any) -> tuple[str, int]:
    """An address of rank 0's host that another host has reached, and a port that is free there; collective."""
    here = socket.gethostname()
    listener = _listen() if comm.Get_rank() == 0 else None
    main, addresses, port = comm.bcast((here, _own_addresses(), listener and listener.getsockname()[1]))
    if not port:
        given = variable("MASTER_PORT") or f"{PORTS.start} to {PORTS.stop}"
        raise LaunchError(f"no port is free on {main}, where rank 0 is (MASTER_PORT: {given}); choose another")
    reached = None if here == main else _first_reached([main, *addresses], port)
    found = comm.allgather((here, reached))
    if listener:
        listener.close()
    others = [address for host, address in found if host != main]
    if None in others:
        lost = next(host for host, address in found if host != main and address is None)
        raise LaunchError(
            f"{lost} reaches {main}, where rank 0 is, by none of {', '.join([main, *addresses])}; see to firewall and "
            "network, or export MASTER_ADDR"
        )
    return others[0] if others else "127.0.0.1", port


def _listen() -> socket.socket | None:
    """On every card, at MASTER_PORT or at a port that is free; None when it is not."""
    given = variable("MASTER_PORT")
    for port in [int(given)] if given else random.SystemRandom().sample(PORTS, len(PORTS)):
        with suppress(OSError):
            return socket.create_server(("", port))
    return None


def _first_reached(addresses: Sequence[str], port: int) -> str | None:
    for address in addresses:
        with suppress(OSError), socket.create_connection((address, port), TRY_SECONDS):
            return address
    return None


# --------------------------------------------------------------------------------------------------------- the cards


def _card(world: World) -> str:
    """The card that leads to rank 0's node, and there the one that leads to the last; "" where that cannot be said."""
    hosts = hosts_of(variable("SLURM_STEP_NODELIST"))
    main = variable("MASTER_ADDR")
    for host in [hosts[-1], main] if hosts and world.node == 0 else [main]:
        if host and (card := card_towards(host)):
            return card
    return ""


def card_towards(host: str) -> str:
    """The card by which this host would send to another; "" for none and for loopback."""
    for address in _addresses(host):
        with suppress(OSError):
            card = card_of(address_towards(address)).name
            return "" if card == "lo" else card
    return ""


def _addresses(host: str) -> list[str]:
    """What the name stands for, IPv4."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)]
    except OSError:
        return []


def _own_addresses() -> list[str]:
    """IPv4."""
    return [card.address for card in cards() if card.name != "lo" and ":" not in card.address]
