"""Where this process stands among the ranks, as a value; and the only reader of the environment.

Found once at start. Everything that depends on topology takes a `World`, so that 1,024 ranks can be tested in one
process. Precedence, the first that is complete wins:

1. RANK and WORLD_SIZE: the deepspeed launcher, torchrun, or a Kubernetes manifest of ours.
2. SLURM_PROCID and SLURM_NTASKS inside a job step: `srun python launch/pretrain.py`.
3. OMPI_COMM_WORLD_* or PMI_*: `mpirun python launch/pretrain.py`.
4. One rank.
"""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from nezha_ds.errors import LaunchError


@dataclass(frozen=True)
class World:
    """One rank's place: `rank` of `world_size`, `local_rank` of `local_world_size` on host number `node`."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.local_world_size):
            raise LaunchError(
                f"rank {self.rank} of {self.world_size} (local {self.local_rank} of {self.local_world_size}) "
                "is impossible; check RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE"
            )

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once per run."""
        return self.rank == 0

    @property
    def is_node_main(self) -> bool:
        """Whether this rank does what is done once per node."""
        return self.local_rank == 0


# (rank, world size, local rank, local world size, node) under each launcher; None where it does not say.
_LAUNCHERS: tuple[tuple[str, str, str, str | None, str | None], ...] = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", None, "SLURM_NODEID"),
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        None,
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", None),
)


def find_world(env: Mapping[str, str] | None = None) -> World:
    """The world that the launcher describes in the environment; LaunchError when it is not a number or impossible."""
    env = os.environ if env is None else env
    for rank, size, local_rank, local_size, node in _LAUNCHERS:
        if _tells(env, rank, size):
            world_size = _number(env, size)
            local_world_size = _local_world_size(env, local_size, world_size)
            return World(
                rank=_number(env, rank),
                world_size=world_size,
                local_rank=_number(env, local_rank, default=_number(env, rank) % local_world_size),
                local_world_size=local_world_size,
                node=_number(env, node, default=_number(env, rank) // local_world_size),
            )
    return World()


def under_launcher(env: Mapping[str, str] | None = None) -> bool:
    """Whether a launcher started this process as a rank."""
    env = os.environ if env is None else env
    return any(_tells(env, rank, size) for rank, size, *_ in _LAUNCHERS)


LAUNCHER = "NEZHA_LAUNCHER"


def launched_by() -> int | None:
    """The process id of `nezha-ds launch`, which tells its ranks; None under others."""
    return int(os.environ[LAUNCHER]) if LAUNCHER in os.environ else None


def rank_environment(world: World, address: str, port: int) -> dict[str, str]:
    """This process's environment with what makes a program that it starts a rank; `address` is rank 0's host."""
    own = {
        "RANK": world.rank,
        "WORLD_SIZE": world.world_size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_world_size,
        "GROUP_RANK": world.node,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": threads_per_rank(world),
        LAUNCHER: os.getpid(),
    }
    return {**os.environ, **{name: str(value) for name, value in own.items()}}


def set_rendezvous(world: World, env: MutableMapping[str, str] | None = None) -> None:
    """Complete the five variables that torch and DeepSpeed read, so that neither falls back to MPI for a missing one.

    MASTER_ADDR has no default beyond one node: a wrong guess hangs every rank, so it raises LaunchError instead.
    LOCAL_SIZE goes: it makes DeepSpeed lay out shared memory for inference on CPUs, 69 MB a rank, which no training
    uses and nobody removes from /dev/shm, whether the run ends well or is killed.
    """
    env = os.environ if env is None else env
    if "MASTER_ADDR" not in env and world.world_size > world.local_world_size:
        raise LaunchError("MASTER_ADDR is not set and the ranks span several nodes; export rank 0's host name")
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", "29500")
    env["RANK"], env["WORLD_SIZE"] = str(world.rank), str(world.world_size)
    env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"] = str(world.local_rank), str(world.local_world_size)
    env.pop("LOCAL_SIZE", None)


def threads_per_rank(world: World, cores: int | None = None) -> int:
    """The share of this node's cores that one rank may use. The launchers set none: two ranks on two cores would
    run four threads and slow each other down.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return max(1, _number(os.environ, "OMP_NUM_THREADS"))
    return max(1, (cores or len(os.sched_getaffinity(0))) // world.local_world_size)


def variable(name: str, default: str = "") -> str:
    """One variable of the environment, for the few rooms that need one."""
    return os.environ.get(name, default)


def set_default(name: str, value: str) -> None:
    """Set a variable for the libraries of this process, where the user has not."""
    os.environ.setdefault(name, value)


def search_programs_in(folder: str) -> None:
    """Look for programs in a folder too, after all others."""
    os.environ["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH", ""), folder]))


def _tells(env: Mapping[str, str], rank: str, size: str) -> bool:
    # SLURM_PROCID is also set in a batch shell, where nobody started ranks: only a step has SLURM_STEP_ID.
    return rank in env and size in env and not (rank == "SLURM_PROCID" and "SLURM_STEP_ID" not in env)


def _local_world_size(env: Mapping[str, str], name: str | None, world_size: int) -> int:
    if name == "LOCAL_WORLD_SIZE" and name not in env:
        name = "LOCAL_SIZE"  # which is what deepspeed's launch.py calls it
    if name is not None and name in env:
        return _number(env, name)
    # Slurm writes `4(x2),3` for two nodes of four tasks and one of three; the number for this node comes first in
    # the common case of equal nodes, which is the only one that data-parallel training allows.
    if "SLURM_STEP_TASKS_PER_NODE" in env:
        text = env["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0]
        return int(text) if text.isdigit() else world_size
    return world_size


def _number(env: Mapping[str, str], name: str | None, default: int | None = None) -> int:
    text = env.get(name) if name else None
    if text is None:
        if default is None:
            raise LaunchError(f"{name} is not set although its launcher's other variables are; set it")
        return default
    if not text.isdigit():
        raise LaunchError(f"{name}={text!r} is not a number; set it to a rank or a count")
    return int(text)
