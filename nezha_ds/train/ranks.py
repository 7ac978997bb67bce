"""Ranks agreeing with each other, on the CPU, beside whatever their devices do.

Control goes over a gloo group of its own: a stop flag that travelled through the device's queue would make every step
wait for the device. One round costs 0.1 ms on a node.
"""

import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nezha_ds.errors import LostRankError, NezhaError
from nezha_ds.world import World

OURS = Path(__file__).parents[1]
T = TypeVar("T")


class Ranks:
    """The control group. Every method is collective: all ranks call it, in the same order."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group: Any = dist.new_group(backend="gloo") if world.world_size > 1 else None

    def highest(self, value: int) -> int:
        """The largest of all ranks' values."""
        if self._group is None:
            return value
        tensor = torch.tensor([value])
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self._group)
        return int(tensor)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a CPU tensor over the ranks, in place."""
        if self._group is not None:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def rows(self, row: Tensor) -> Tensor:
        """Every rank's row of a CPU tensor (n,), by rank: (ranks, n)."""
        if self._group is None:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.world.world_size)]
        dist.all_gather(rows, row, self._group)
        return torch.stack(rows)

    def wait(self) -> None:
        """Until every rank has come here."""
        if self._group is not None:
            dist.barrier(self._group)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world.world_size
        dist.all_gather_object(values, value, self._group)
        return values

    def on_main(self, action: Callable[[], T]) -> T:
        """What an action of rank 0 alone returns, on every rank; an error of ours is raised on every rank too."""
        outcome: tuple[Any, NezhaError | None] = (None, None)
        if self.world.is_main:
            try:
                outcome = (action(), None)
            except NezhaError as error:
                outcome = (None, error)
        result, error = self.gather(outcome)[0]
        if error is not None:
            raise error
        return result


@contextmanager
def telling_of_lost_ranks(world: World) -> Generator[None]:
    """Turn what torch raises in a collective when another rank has died into one line: LostRankError."""
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise LostRankError(
            f"rank {world.rank} of {world.world_size} lost another rank in {_place(error)} ({_reason(error)}); the log "
            "of the rank that ended first tells why; start the same command again"
        ) from None


def _is_loss(error: RuntimeError) -> bool:
    # gloo raises plain RuntimeErrors that begin with the place in its source.
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def _place(error: RuntimeError) -> str:
    """The last of our own functions on the way to it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if OURS in Path(frame.filename).parents]
    return f"{frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "torch"


def _reason(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:200]
