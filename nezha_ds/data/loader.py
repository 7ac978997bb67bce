"""Micro-batches for one rank, made ahead by one thread; and the two ways to read a split, for ever or once.

No worker processes: one core makes 20M tokens/s, a rank on an H100 uses one or two. So nothing is shared, nothing is
stale after a crash, and an error in the thread is the consumer's next exception. The only state is a sample number.
"""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nezha_ds.batch import Batch
from nezha_ds.cache import Statistics as Fetched
from nezha_ds.data.batches import Stage
from nezha_ds.data.collate import SpecialIds
from nezha_ds.data.dataset import PADDING
from nezha_ds.data.mixture import MixedOrder, Mixture, heldout_samples, open_mixture
from nezha_ds.data.order import Numbers, Share
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
        sources: Sequence[str] = (),
        sections: Mapping[str, int] | None = None,
        fetched: Sequence[Fetched] = (),
    ) -> None:
        self.plan_size = plan_size
        """Samples in the plan, N: an epoch, where all texts are gone through at one pace."""
        self.fingerprint = fingerprint
        """The data's identity."""
        self.sources = tuple(sources)
        """The names of the texts, for metrics."""
        self.sections = dict(sections or {})
        """Of an evaluation: how many micro-batches it has of each source, in order; the same on every rank."""
        self.wait_seconds = 0.0
        """How long the consumer has waited for batches; when this grows, the loader is the bottleneck."""
        self.served = 0
        """Micro-batches handed out."""
        self.statistics = Statistics()
        """What was masked in the micro-batches handed out."""
        self._told: tuple[int, ...] = ()
        self._fetched, self._told_fetched = fetched, (0, 0)
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

    @property
    def ready(self) -> int:
        """Micro-batches that are made and not handed out yet."""
        return len(self._ready)

    def take_source_tokens(self) -> dict[str, int]:
        """Text tokens of each source in the micro-batches handed out since the last call."""
        before, self._told = self._told, self.statistics.sources
        grown = [now - then for now, then in zip_longest(self._told, before, fillvalue=0)]
        return {source: grown[number] if number < len(grown) else 0 for number, source in enumerate(self.sources)}

    def take_fetched(self) -> tuple[int, int]:
        """Since the last call: bytes of shards that came from a store, and requests that had to be made again."""
        before = self._told_fetched
        self._told_fetched = (sum(one.bytes for one in self._fetched), sum(one.retries for one in self._fetched))
        return self._told_fetched[0] - before[0], self._told_fetched[1] - before[1]

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


@dataclass(frozen=True)
class Stream:
    """What the batches of a rank depend on, besides where they begin and end."""

    data: DataSettings
    masking: MaskingSettings
    seed: int
    micro_batch: int
    world: World
    special: SpecialIds
    random_ids: NDArray[np.int64]
    """The entries of the vocabulary that may replace a token."""
    pin: bool = False
    """Whether batches lie in pinned memory, from which a GPU copies while the host goes on."""
    progress: Progress | None = None
    """Told about a plan that has to be built first: let one rank of a node do so before the others come here."""

    def pipeline(self, mixture: Mixture) -> Pipeline:
        """What makes batches of the samples of a split."""
        ordered = self.data.pairing == "sentence-order"
        return Pipeline(mixture, self.masking, self.data.length, self.seed, self.special, self.random_ids, ordered)


def build_loader(
    stream: Stream, *, global_batch: int, first: int, split: Split = "train", stages: tuple[Stage, ...] = ()
) -> Loader:
    """This rank's micro-batches of a split from sample number `first` on, epoch after epoch, for ever.

    `stages` are the batches of the steps from there on until they come to `global_batch`. ConfigError when a batch does
    not divide, DataError when the data is at fault.
    """
    share = Share(first, stream.micro_batch, global_batch, stream.world, stages)
    mixture = open_mixture(stream.data, split, stream.progress)
    order, pipeline = MixedOrder(mixture, stream.seed), stream.pipeline(mixture)

    def made() -> Made:
        at, block = 0, pipeline.block(stream.micro_batch)
        with closing(mixture):
            while True:
                numbers = share.numbers(at, block)
                mixture.expect(order.shards_from(int(numbers[0])))
                yield from _split(*pipeline.make(*order.place(numbers)), stream)
                at += block

    return _loader(made(), share, stream, mixture)


def build_evaluation(stream: Stream, *, limit: int, split: Split = "heldout") -> Loader:
    """This rank's part of about `limit` samples of a split, once, source after source, masked as in epoch 0.

    Every rank gets the same number of full micro-batches of each source (`Loader.sections`). The places beyond a
    source's last sample hold rows without text and without labels (sample id -1), so sums of losses and counts are the
    same for any world size and micro-batch.
    """
    mixture = open_mixture(stream.data, split, stream.progress)
    pipeline, together = stream.pipeline(mixture), stream.micro_batch * stream.world.world_size
    parts: list[tuple[Numbers, Share]] = []
    sections: dict[str, int] = {}
    for source, samples in heldout_samples(mixture, limit):
        padded = np.pad(samples, (0, -len(samples) % together), constant_values=PADDING)
        share = Share(0, stream.micro_batch, len(padded), stream.world)
        parts.append((padded, share))
        sections[source] = share.accumulation

    def made() -> Made:
        with closing(mixture):
            for samples, share in parts:
                block = pipeline.block(stream.micro_batch)
                for at in range(0, share.accumulation, block):
                    own = samples[share.numbers(at, min(block, share.accumulation - at))]
                    yield from _split(*pipeline.make(own, np.zeros_like(own)), stream)

    whole = Share(0, stream.micro_batch, together * sum(sections.values()), stream.world)
    return _loader(made(), whole, stream, mixture, sections)


def _loader(
    made: Made, share: Share, stream: Stream, mixture: Mixture, sections: Mapping[str, int] | None = None
) -> Loader:
    return Loader(
        made,
        share=share,
        prefetch=stream.data.prefetch,
        plan_size=len(mixture),
        fingerprint=mixture.fingerprint,
        sources=mixture.sources,
        sections=sections,
        fetched=mixture.fetched,
    )


def _split(batch: Batch, counts: Counts, stream: Stream) -> Made:
    """Micro-batches as views of one batch, which is pinned whole."""
    tensors: dict[str, Tensor] = {
        field.name: value.pin_memory() if stream.pin else value
        for field in fields(batch)
        if (value := getattr(batch, field.name)) is not None
    }
    for start in range(0, batch.samples, stream.micro_batch):
        part = {name: tensor[start : start + stream.micro_batch] for name, tensor in tensors.items()}
        yield replace(batch, **part), counts.sum(start, start + stream.micro_batch)
