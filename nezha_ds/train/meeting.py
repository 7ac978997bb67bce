"""Ranks of several nodes meet at rank 0, all of them or none.

A node that was lost may come back while the others have not noticed yet. It would find addresses of ranks that are
about to end where they met, and wait for those for ten minutes (tried), and the others, started again, for it. So the
meeting is closed once all are there, and who comes later ends at once with a code that starts it again. It costs a
connection a rank at the start.
"""

from datetime import timedelta

# torch's own documentation imports it so; its types do not tell of it.
from torch.distributed import TCPStore  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]

from nezha_ds.errors import LaunchError, LostRankError, NezhaError
from nezha_ds.world import World, variable

CLOSED = "nezha_ds/closed"
PATIENCE = timedelta(minutes=10)
"""How long a rank waits for rank 0, as DeepSpeed does."""


def is_over(world: World) -> bool:
    """Whether the others have met without this rank; waits until rank 0 is there."""
    return world.rank > 0 and _has_nodes(world) and _store(world).check([CLOSED])


def close_meeting(world: World) -> None:
    """Let nobody in any more; by rank 0, when all have met."""
    if world.is_main and _has_nodes(world):
        _store(world).set(CLOSED, "")


def unmet(world: World, reason: object) -> NezhaError:
    """What to raise when the others did not come."""
    told = f"rank {world.rank} of {world.world_size} could not meet the others ({reason})"
    if _has_nodes(world):
        # Another node may come later, or was met as it ended: nothing that a person must mend first.
        return LostRankError(
            f"{told}; see that every node is up and MASTER_ADDR and MASTER_PORT are rank 0's, and start it again"
        )
    return LaunchError(f"{told}; check MASTER_ADDR and that MASTER_PORT is free")


def _has_nodes(world: World) -> bool:
    return world.world_size > world.local_world_size


def _store(world: World) -> TCPStore:
    address, port = variable("MASTER_ADDR"), int(variable("MASTER_PORT"))
    return TCPStore(address, port, world.world_size, is_master=False, wait_for_workers=False, timeout=PATIENCE)
