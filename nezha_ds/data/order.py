"""Which sample comes when: sample number g of a run to a sample of the plan, and a step's numbers to its ranks.

Number g belongs to epoch g // N at place g % N. An epoch's places map to the N samples one to one, by computation:
shards are permuted, taken in windows of a few (so that only these are read at a time), and the samples of a window are
permuted by a keyed bijection. Nothing is stored but a table of shards, and no state exists but g: a run goes on from
any step, at any world size that divides the batch. About 0.2 us a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from nezha_ds.data.batches import Stage
from nezha_ds.data.randomness import U64, fold, key_of
from nezha_ds.errors import ConfigError
from nezha_ds.world import World

Numbers = NDArray[np.int64]

WINDOW = 8
"""Shards whose samples are mixed with each other: 8 of 64 MB are half a gigabyte of page cache a node."""
ROUNDS = 8
"""Feistel rounds: at 6 the distances of neighbours still show in windows of 50 samples, at 4 in those of 1,000."""

_SHARDS, _WINDOWS = -1, -2
"""Stand where a sample's number does in the keys of masks: no sample has them, so no number is used twice."""


@dataclass(frozen=True)
class _Layout:
    """One epoch: shards in a new order, and windows of them."""

    shards: Numbers
    """(S,): the plan's shard at each turn."""
    turns: Numbers
    """(S + 1,): the place at which each turn begins, and N."""
    windows: Numbers
    """(W + 1,): the place at which each window begins, and N."""
    keys: U64
    """(W,): the key of each window."""


class Order:
    """The order of a plan's samples under a seed.

    `counts` are the samples of each shard, in the plan's order; `first` the number of each one's first sample, where
    they are not all shards of the plan.
    """

    def __init__(
        self, counts: Sequence[int] | Numbers, seed: int, window: int = WINDOW, first: Numbers | None = None
    ) -> None:
        counts = np.asarray(counts, np.int64)
        self.samples = int(counts.sum())
        """N."""
        self._first = np.cumsum(counts) - counts if first is None else first
        self._window = window
        self._layout = lru_cache(maxsize=2)(partial(_lay_out, counts, window, seed))

    def epochs(self, numbers: Numbers) -> Numbers:
        """The epoch of each sample number."""
        return numbers // self.samples

    def sample(self, numbers: Numbers) -> Numbers:
        """The plan's sample at each sample number; in each run of N numbers from a multiple of N, each sample once."""
        epochs, places = np.divmod(numbers, self.samples)
        samples = np.empty_like(numbers)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            samples[here] = self._at(self._layout(epoch), places[here])
        return samples

    def shards_from(self, number: int) -> list[int]:
        """The plan's shards that are read around sample number `number`: those of its window and of the next one."""
        epoch, place = divmod(number, self.samples)
        layout = self._layout(epoch)
        start = self._window * (int(np.searchsorted(layout.windows, place, side="right")) - 1)
        shards: list[int] = layout.shards[start : start + 2 * self._window].tolist()
        if start + self._window >= len(layout.shards):
            shards += self._layout(epoch + 1).shards[: self._window].tolist()
        return list(dict.fromkeys(shards))

    def _at(self, layout: _Layout, places: Numbers) -> Numbers:
        window = np.searchsorted(layout.windows, places, side="right") - 1
        start = layout.windows[window]
        mixed = start + permute(places - start, layout.windows[window + 1] - start, layout.keys[window])
        turn = np.searchsorted(layout.turns, mixed, side="right") - 1
        return self._first[layout.shards[turn]] + mixed - layout.turns[turn]


def _lay_out(counts: Numbers, window: int, seed: int, epoch: int) -> _Layout:
    numbers = np.arange(len(counts), dtype=np.uint64)
    shards = np.argsort(fold(key_of(seed, epoch, _SHARDS), numbers), kind="stable")
    turns = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[shards])])
    windows = np.append(turns[:-1:window], turns[-1])
    return _Layout(shards, turns, windows, fold(key_of(seed, epoch, _WINDOWS), numbers[: len(windows) - 1]))


def permute(index: Numbers, size: Numbers, key: U64) -> Numbers:
    """A bijection of 0 .. size-1 for each key, applied to `index`; all (n,), sizes and keys may differ.

    The generalised Feistel network of Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002): over
    a rectangle a x b just larger than `size`, and again wherever the result falls outside (once in sqrt(size)).
    """
    result = _feistel(index, size, key)
    while len(outside := np.flatnonzero(result >= size)):
        result[outside] = _feistel(result[outside], size[outside], key[outside])
    return result


def _feistel(index: Numbers, size: Numbers, key: U64) -> Numbers:
    rows = np.ceil(np.sqrt(size)).astype(np.uint64)
    columns = -(-size // rows.astype(np.int64)).astype(np.uint64)
    row, column = np.divmod(index.astype(np.uint64), columns)
    for turn in range(0, ROUNDS, 2):
        row = (row + fold(key + np.uint64(turn), column) % rows) % rows
        column = (column + fold(key + np.uint64(turn + 1), row) % columns) % columns
    return (row * columns + column).astype(np.int64)


def rank_samples(first: int, global_batch: int, world: World) -> Numbers:
    """(G / world size,): this rank's part of the step whose sample numbers are first .. first + global_batch - 1.

    Rank r takes the r-th of equal slices. ConfigError when the ranks do not divide the batch.
    """
    if global_batch % world.world_size:
        raise ConfigError(
            f"a batch of {global_batch} samples cannot be shared by {world.world_size} ranks; "
            f"take a multiple of {world.world_size} for train_batch_size, or another number of ranks"
        )
    share = global_batch // world.world_size
    return np.arange(share, dtype=np.int64) + first + world.rank * share


@dataclass(frozen=True)
class Share:
    """The sample numbers of one rank's micro-batches, from sample number `first` on, without end.

    A rank's part of a step is consecutive micro-batches of `micro_batch`. ConfigError when it does not divide.
    """

    first: int
    micro_batch: int
    global_batch: int
    world: World
    stages: tuple[Stage, ...] = ()
    """The steps from `first` on whose batch is another; after them it is `global_batch`."""

    def __post_init__(self) -> None:
        for batch in self._batches.tolist():
            part = len(rank_samples(0, batch, self.world))
            if part % self.micro_batch:
                raise ConfigError(
                    f"a rank's part of the batch, {batch} / {self.world.world_size} = {part} samples, is not a "
                    f"multiple of train_micro_batch_size_per_gpu = {self.micro_batch}; take a divisor of {part}"
                )

    @property
    def accumulation(self) -> int:
        """Micro-batches that a rank makes for one step, after the stages."""
        return int(self._accumulations[-1])

    def numbers(self, start: int, count: int) -> Numbers:
        """(count x micro_batch,): the sample numbers of micro-batches start .. start + count - 1."""
        stage, steps, places = self._locate(np.arange(start, start + count))
        batch = self._batches[stage]
        own = self._samples[stage] + steps * batch + self.world.rank * (batch // self.world.world_size)
        return ((own + places * self.micro_batch)[:, None] + np.arange(self.micro_batch)).reshape(-1)

    def position(self, served: int) -> int:
        """The sample number from which to go on when `served` micro-batches were used; unfinished steps are redone."""
        stage, steps, _ = self._locate(np.array([served]))
        return int((self._samples[stage] + steps * self._batches[stage])[0])

    def _locate(self, micro_batches: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """(n,) numbers of this rank's micro-batches -> the stage of each, the steps before it there, its place."""
        stage = np.searchsorted(self._micro_batches, micro_batches, side="right") - 1
        steps, places = np.divmod(micro_batches - self._micro_batches[stage], self._accumulations[stage])
        return stage, steps, places

    # One entry a stage, and one for what comes after them: its batch, a rank's micro-batches of a step, and the numbers
    # of a rank's micro-batch and of the sample with which it begins.

    @cached_property
    def _batches(self) -> Numbers:
        return np.array([*(stage.batch for stage in self.stages), self.global_batch], np.int64)

    @cached_property
    def _accumulations(self) -> Numbers:
        return self._batches // (self.world.world_size * self.micro_batch)

    @cached_property
    def _micro_batches(self) -> Numbers:
        return self._begins(self._accumulations)

    @cached_property
    def _samples(self) -> Numbers:
        return self.first + self._begins(self._batches)

    def _begins(self, a_step: Numbers) -> Numbers:
        """Where each stage begins, when its steps have so many each."""
        ends = np.cumsum(a_step[:-1] * np.array([stage.steps for stage in self.stages], np.int64))
        return np.concatenate([np.zeros(1, np.int64), ends])
