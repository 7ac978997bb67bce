"""Micro-batches for one rank, made ahead by one thread; and the two ways to read a split, for ever or once.

No worker processes: one core makes 20M tokens/s, a rank on an H100 uses one or two. So nothing is shared, nothing is
stale after a crash, and an error in the thread is the consumer's next exception. The only state is a sample number.
"""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nezha_ds.batch import Batch
from nezha_ds.cache import Statistics as Fetched
from nezha_ds.data.collate import SpecialIds
from nezha_ds.data.dataset import PADDING, open_dataset
from nezha_ds.data.order import Order, Share
from nezha_ds.data.pipeline import Counts, Pipeline, Statistics
from nezha_ds.data.plan import Progress
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.shards import Split
from nezha_ds.world import World

Made = Generator[tuple[Batch, Statistics], None, None]
"""Micro-batches, and what was counted in each."""


class Loader(Iterator[Batch]):
    """Iterates over micro-batches while a thread makes `prefetch` of them ahead. Close it, or use it in `with`."""

    def __init__(
        self,
        made: Made,
        *,
        share: Share,
        prefetch: int,
        plan_size: int,
        fingerprint: str,
        fetched: Sequence[Fetched] = (),
    ) -> None:
        self.plan_size = plan_size
        """Samples in the plan, N: an epoch."""
        self.fingerprint = fingerprint
        """The data's identity, the manifest's hash."""
        self.wait_seconds = 0.0
        """How long the consumer has waited for batches; when this grows, the loader is the bottleneck."""
        self.served = 0
        """Micro-batches handed out."""
        self.statistics = Statistics()
        """What was masked in the micro-batches handed out."""
        self._fetched, self._told = fetched, (0, 0)
        self._made, self._share, self._prefetch = made, share, prefetch
        self._ready: deque[tuple[Batch, Statistics]] = deque()
        self._error: BaseException | None = None
        self._closed = self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    @property
    def position(self) -> int:
        """The sample number from which a new loader goes on; a step that was not served whole is served again."""
        return self._share.position(self.served)

    def take_fetched(self) -> tuple[int, int]:
        """Since the last call: bytes of shards that came from a store, and requests that had to be made again."""
        before = self._told
        self._told = (sum(one.bytes for one in self._fetched), sum(one.retries for one in self._fetched))
        return self._told[0] - before[0], self._told[1] - before[1]

    def __next__(self) -> Batch:
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            self.wait_seconds += time.perf_counter() - began
            if not self._ready:
                raise self._error or StopIteration
            batch, statistics = self._ready.popleft()
            self._changed.notify_all()
        self.served += 1
        self.statistics += statistics
        return batch

    def close(self) -> None:
        """Stop the thread and forget what it made ahead. Later calls do nothing; iteration ends."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        # A thread that hangs in a read from a dead file server must not hang the exit too; it is a daemon.
        self._thread.join(timeout=10)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            for item in self._made:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._ready) < self._prefetch)
                    if self._closed:
                        break
                    self._ready.append(item)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            self._made.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def build_loader(
    data: DataSettings,
    masking: MaskingSettings,
    *,
    seed: int,
    micro_batch: int,
    global_batch: int,
    world: World,
    first: int,
    special: SpecialIds,
    random_ids: NDArray[np.int64],
    split: Split = "train",
    pin: bool = False,
    progress: Progress | None = None,
) -> Loader:
    """This rank's micro-batches of a split from sample number `first` on, epoch after epoch, for ever.

    `random_ids` are the entries that may replace a token. A plan is built first if there is none: let one rank of a
    node do so (`load_plan`) before the others come here. ConfigError when the batch does not divide, DataError when the
    data is at fault.
    """
    share = Share(first, micro_batch, global_batch, world)
    dataset, manifest = open_dataset(data, split, progress)
    order = Order(dataset.plan.counts, seed)
    pipeline = Pipeline(dataset, masking, data.length, seed, special, random_ids)

    def made() -> Made:
        at, block = 0, pipeline.block(micro_batch)
        with closing(dataset):
            while True:
                numbers = share.numbers(at, block)
                dataset.expect(order.shards_from(int(numbers[0])))
                yield from _split(*pipeline.make(order.sample(numbers), order.epochs(numbers)), micro_batch, pin)
                at += block

    return Loader(
        made(),
        share=share,
        prefetch=data.prefetch,
        plan_size=len(dataset.plan),
        fingerprint=manifest.fingerprint,
        fetched=[dataset.shelf.statistics],
    )


def build_evaluation(
    data: DataSettings,
    masking: MaskingSettings,
    *,
    seed: int,
    micro_batch: int,
    world: World,
    limit: int,
    special: SpecialIds,
    random_ids: NDArray[np.int64],
    split: Split = "heldout",
    pin: bool = False,
    progress: Progress | None = None,
) -> Loader:
    """This rank's part of the first `limit` samples of a split, once, in the plan's order, masked as in epoch 0.

    Every rank gets the same number of full micro-batches. The places beyond the last sample hold rows without text
    and without labels (sample id -1), so sums of losses and counts are the same for any world size and micro-batch.
    """
    dataset, manifest = open_dataset(data, split, progress)
    pipeline = Pipeline(dataset, masking, data.length, seed, special, random_ids)
    count = min(limit, len(dataset.plan))
    together = micro_batch * world.world_size
    share = Share(0, micro_batch, -(-count // together) * together, world)

    def made() -> Made:
        block = pipeline.block(micro_batch)
        with closing(dataset):
            for at in range(0, share.accumulation, block):
                numbers = share.numbers(at, min(block, share.accumulation - at))
                samples = np.where(numbers < count, numbers, PADDING)
                yield from _split(*pipeline.make(samples, np.zeros_like(samples)), micro_batch, pin)

    return Loader(
        made(),
        share=share,
        prefetch=data.prefetch,
        plan_size=len(dataset.plan),
        fingerprint=manifest.fingerprint,
        fetched=[dataset.shelf.statistics],
    )


def _split(batch: Batch, counts: Counts, size: int, pin: bool) -> Made:
    """Micro-batches of `size` samples as views of one batch, which is pinned whole."""
    tensors: dict[str, Tensor] = {
        field.name: value.pin_memory() if pin else value
        for field in fields(batch)
        if (value := getattr(batch, field.name)) is not None
    }
    for start in range(0, batch.samples, size):
        part = {name: tensor[start : start + size] for name, tensor in tensors.items()}
        yield replace(batch, **part), counts.sum(start, start + size)
