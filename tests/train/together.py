"""Ranks as threads of one process: what they agree upon, without the seconds that processes take to meet."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World

T = TypeVar("T")


class Meeting:
    """Where the ranks leave their values for each other."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=600)


class Together(Ranks):
    """One of the ranks; only what savers ask of the group."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.world = World(rank=rank, world_size=len(meeting.values))
        self._meeting = meeting

    def gather(self, value: Any) -> list[Any]:
        self._meeting.values[self.world.rank] = value
        self._meeting.barrier.wait()
        values = list(self._meeting.values)
        self._meeting.barrier.wait()
        return values

    def highest(self, value: int) -> int:
        return max(self.gather(value))


def on_ranks(size: int, action: Callable[[Ranks], T]) -> list[T]:
    """What an action returns on each rank; the first error of any."""
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: action(Together(rank, meeting)), range(size)))
