"""Several prepared texts as one stream: what sample number g of a run is, when texts take turns by their weights.

A *part* is what has a weight: a folder, or a source to which its preparation gave one. With the weights as whole
numbers w, divided by what they have in common, and W their sum, the parts take turns in a pattern of W turns, spread as
evenly as whole numbers allow. The pattern repeats, so any W samples in a row hold exactly w of each part. Sample number
g is the n-th of its part, which is computed from g; n belongs to epoch n // N of the part and stands where the part's
own order, with a key of its own, puts it. No state exists but g, as with one folder, which is a mixture of one part.

A *source* is what is counted and evaluated: every source of every folder. Sources without weights share one part.

Samples and shards of all folders have one set of numbers, those of the first folder first, so a sample's number is its
own and so are the random numbers that come from it. Folders stand in the order of their fingerprints: what they are
called, and in which order a recipe names them, does not matter.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from nezha_ds.cache import Statistics as Fetched
from nezha_ds.data.dataset import Dataset, Seconds, Slices, shelf_of
from nezha_ds.data.order import Numbers, Order
from nezha_ds.data.plan import Progress, load_plan
from nezha_ds.data.randomness import key_of
from nezha_ds.data.settings import DataSettings
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.shards import Columns, Manifest, Split, TokenizerEntry, read_manifest

LONGEST_PATTERN = 1_000_000
"""Turns in a pattern: 16 MB of tables."""
_PART = -3
"""Stands where an epoch does in the keys of orders: no epoch has it, so no two parts share a key."""


class Schedule:
    """Which part's turn it is at each sample number; `weights` are whole numbers from 1 on."""

    def __init__(self, weights: Sequence[int]) -> None:
        common = gcd(*weights)
        if sum(weights) // common > LONGEST_PATTERN:
            raise ConfigError(
                f"weights {', '.join(map(str, weights))} repeat only after {sum(weights) // common:,} samples; "
                "take smaller ones, such as 3 and 1"
            )
        self.weights = np.array(weights, np.int64) // common
        """(S,): w of each part."""
        parts = np.repeat(np.arange(len(weights)), self.weights)
        turns = np.arange(len(parts)) - np.repeat(np.cumsum(self.weights) - self.weights, self.weights)
        # The k-th turn of a part comes where its share reaches k + 1/2.
        order = np.argsort((2 * turns + 1) / self.weights[parts], kind="stable")
        self._parts, self._turns = parts[order], turns[order]

    def place(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """The part of each sample number, and which of the part's own samples it is, from 0 on; each (n,)."""
        cycles, at = np.divmod(numbers, len(self._parts))
        parts = self._parts[at]
        return parts, cycles * self.weights[parts] + self._turns[at]

    def turn(self, part: int, number: int) -> int:
        """Which of a part's own samples is the first from a sample number on."""
        cycles, at = divmod(number, len(self._parts))
        return cycles * int(self.weights[part]) + int(np.count_nonzero(self._parts[:at] == part))


@dataclass(frozen=True)
class Part:
    """What has a weight."""

    weight: int
    shards: Numbers
    """Its shards, by their numbers in the mixture."""


class Mixture:
    """A split of all folders as one set of samples."""

    def __init__(self, folders: "Sequence[tuple[str, Dataset]]", parts: Sequence[Part], fingerprint: str) -> None:
        self.parts, self.fingerprint = parts, fingerprint
        self._datasets = [dataset for _, dataset in folders]
        labels = [_labels(name, dataset.sources) for name, dataset in folders]
        self.sources = tuple(label for part in labels for label in part)
        """The names that metrics go by: a folder's name in the mixture, or folder/source where it has several."""
        before = np.cumsum([0, *map(len, labels)])
        self.owners = np.concatenate([one.owners + at for one, at in zip(self._datasets, before, strict=False)])
        self.counts = np.concatenate([dataset.plan.counts for dataset in self._datasets])
        """(S,): samples of each shard."""
        self.first = np.cumsum(self.counts) - self.counts
        """(S,): each shard's first sample."""
        self._samples = np.cumsum([0, *(len(dataset.plan) for dataset in self._datasets)])
        self._shards = np.cumsum([0, *(len(dataset.owners) for dataset in self._datasets)])

    def __len__(self) -> int:
        return int(self._samples[-1])

    def slices(self, samples: NDArray[np.int64]) -> Slices:
        """Where samples (B,) lie; PADDING is an empty slice."""
        if len(self._datasets) == 1:
            return self._datasets[0].slices(samples)
        # PADDING, which is before all numbers, goes to the first folder.
        folder = np.maximum(np.searchsorted(self._samples, samples, side="right") - 1, 0)
        places = [np.flatnonzero(folder == number) for number in range(len(self._datasets))]
        parts: list[Slices] = []
        for dataset, own, sample, shard in zip(self._datasets, places, self._samples, self._shards, strict=False):
            part = dataset.slices(samples[own] - sample)
            parts.append(replace(part, shards=part.shards + shard))
        return _in_place(places, parts)

    def size(self, shards: Numbers) -> int:
        """The samples of some shards together."""
        return int(self.counts[shards].sum())

    def among(self, shards: Numbers, places: Numbers) -> Numbers:
        """The samples at places (n,) of some shards laid end to end."""
        ends = np.cumsum(self.counts[shards])
        turns = np.searchsorted(ends, places, side="right")
        return self.first[shards[turns]] + places - (ends - self.counts[shards])[turns]

    def columns(self, shard: int) -> Columns:
        """The columns of a shard by its number in the mixture. DataError when it is damaged."""
        folder = int(np.searchsorted(self._shards, shard, side="right")) - 1
        return self._datasets[folder].columns(shard - int(self._shards[folder]))

    @property
    def fetched(self) -> list[Fetched]:
        """What came from a store, by folder."""
        return [dataset.shelf.statistics for dataset in self._datasets]

    def expect(self, shards: Sequence[int]) -> None:
        """Which shards come next, the most urgent first: those that are not on this machine are fetched."""
        for dataset, first, end in zip(self._datasets, self._shards, self._shards[1:], strict=False):
            dataset.expect([shard - int(first) for shard in shards if first <= shard < end])

    def close(self) -> None:
        """Let go of all shards, and fetch no more."""
        for dataset in self._datasets:
            dataset.close()


class MixedOrder:
    """Which sample comes when: the schedule's turns, filled from each part's own order."""

    def __init__(self, mixture: Mixture, seed: int) -> None:
        self._schedule = Schedule([part.weight for part in mixture.parts])
        self._shards = [part.shards for part in mixture.parts]
        self._orders = [
            Order(
                mixture.counts[part.shards],
                # The first has the seed itself, as a folder that is alone.
                int(key_of(seed, _PART, number)[0]) if number else seed,
                first=mixture.first[part.shards],
            )
            for number, part in enumerate(mixture.parts)
        ]

    def place(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """The sample of the mixture at each sample number of the run, and the epoch of its part; each (n,)."""
        parts, turns = self._schedule.place(numbers)
        samples, epochs = np.empty_like(numbers), np.empty_like(numbers)
        for part, order in enumerate(self._orders):
            here = np.flatnonzero(parts == part)
            samples[here], epochs[here] = order.sample(turns[here]), order.epochs(turns[here])
        return samples, epochs

    def shards_from(self, number: int) -> list[int]:
        """The mixture's shards that are read around sample number `number`, of every part."""
        shards: list[int] = []
        for part, order in enumerate(self._orders):
            shards += self._shards[part][order.shards_from(self._schedule.turn(part, number))].tolist()
        return shards


def heldout_samples(mixture: Mixture, limit: int) -> Iterator[tuple[str, Numbers]]:
    """Each source that has samples, with about its share of `limit` of them: (n,), spread evenly over the source.

    The share is that of training, and at least 1: a part's by its weight, a source's within a part by its length.
    """
    together = sum(part.weight for part in mixture.parts if mixture.size(part.shards))
    for part in mixture.parts:
        for source in np.unique(mixture.owners[part.shards]).tolist():
            shards = part.shards[mixture.owners[part.shards] == source]
            size, whole = mixture.size(shards), mixture.size(part.shards)
            share = max(1, limit * part.weight * size // max(1, together * whole))
            chosen = min(share, size)
            yield mixture.sources[source], mixture.among(shards, np.arange(chosen) * size // max(1, chosen))


# ---------------------------------------------------------------------------------------------------------- the opening


def read_manifests(settings: DataSettings) -> dict[str, Manifest]:
    """The manifest of each folder by its name in the mixture, in the mixture's order.

    DataError when a folder is not prepared, not with the tokenizer and the normalisation of the others, or given twice.
    """
    manifests = {name: read_manifest(shelf_of(part).folder) for name, part in settings.parts.items()}
    names = sorted(manifests, key=lambda name: manifests[name].fingerprint)
    for name, other in pairwise(names):
        one, two = settings.parts[name].shards, settings.parts[other].shards
        if manifests[name].fingerprint == manifests[other].fingerprint:
            raise DataError(
                f"{one} and {two} hold the same text; take one of {name} and {other} out of the mixture and give the "
                "other the sum of their weights"
            )
        for what, left, right in _differences(manifests[name], manifests[other]):
            raise DataError(
                f"{one} and {two} were prepared with different {what} ({left} and {right}), and one model reads both; "
                "prepare one of them again as the other"
            )
    return {name: manifests[name] for name in names}


def fingerprint_of(settings: DataSettings, manifests: dict[str, Manifest]) -> str:
    """The identity of the data: the manifest's own, or a hash of all folders' and of their weights."""
    if settings.shards:
        return next(iter(manifests.values())).fingerprint
    common = gcd(*(part.weight for part in settings.mixture.values()))
    parts = [(manifests[name].fingerprint, settings.mixture[name].weight // common) for name in manifests]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def open_mixture(settings: DataSettings, split: Split, progress: Progress | None = None) -> Mixture:
    """A split of all folders. Those without a document of it are left out of an evaluation, and refused in training.

    ConfigError for weights that cannot be, DataError when a folder, the split or a shard is at fault.
    """
    manifests = read_manifests(settings)
    fingerprint = fingerprint_of(settings, manifests)
    if split != "train":
        manifests = {name: one for name, one in manifests.items() if one.of(split)} or manifests
    parts = weigh(settings, manifests, split)
    folders: list[tuple[str, Dataset]] = []
    for name, manifest in manifests.items():
        one = settings.parts[name]
        shelf = shelf_of(one)
        # Once, at the beginning: an evaluation opens its split every time anew.
        if split == "train" and one.verify != "never":
            shelf.check(manifest)
        dataset = Dataset(manifest, split, one, load_plan(shelf, manifest, split, one, progress), shelf)
        folders.append((name, dataset))
    return Mixture(folders, parts, fingerprint)


def weigh(settings: DataSettings, manifests: dict[str, Manifest], split: Split) -> list[Part]:
    """The parts of a split, with whole weights; no file is read.

    ConfigError for weights that cannot be; DataError for a part without text to train on, or sources of which some have
    a weight and others none.
    """
    found: list[tuple[Fraction, Numbers]] = []
    before = 0
    for name, manifest in manifests.items():
        weight = settings.mixture[name].weight if name else 1
        for part, share, shards in _parts(settings.parts[name].shards, manifest, split):
            if split == "train" and not len(shards):
                raise DataError(f"{part} has no documents to train on; prepare more of it, or take it out")
            found.append((weight * share, shards + before))
        before += len(manifest.of(split))
    scale = lcm(*(weight.denominator for weight, _ in found))
    parts = [Part(int(weight * scale), shards) for weight, shards in found]
    Schedule([part.weight for part in parts])
    return parts


def _parts(folder: str, manifest: Manifest, split: Split) -> Iterator[tuple[str, Fraction, Numbers]]:
    """A folder's parts, for errors by name, with their shares of the folder and their shards in it."""
    owners = np.array([entry.source for entry in manifest.of(split)], np.str_)
    weights = {source.name: source.weight for source in manifest.sources}
    whole = sum(weights.values())
    if not whole:
        yield folder, Fraction(1), np.arange(len(owners))
        return
    if unweighted := [name for name, weight in weights.items() if not weight]:
        raise DataError(
            f"{folder} has weights for some of its sources and none for {', '.join(unweighted)}; "
            "prepare again with a weight for each, or for none"
        )
    for name, weight in weights.items():
        yield f"source {name} of {folder}", Fraction(weight, whole), np.flatnonzero(owners == name)


def _labels(folder: str, sources: Sequence[str]) -> list[str]:
    if folder and len(sources) == 1:
        return [folder]
    return [f"{folder}/{source}" if folder else source for source in sources]


def _differences(one: Manifest, two: Manifest) -> Iterator[tuple[str, str, str]]:
    """What must be alike and is not, as both have it."""
    for field in TokenizerEntry.model_fields:
        left, right = getattr(one.tokenizer, field), getattr(two.tokenizer, field)
        if left != right:
            yield f"tokenizers: {field}", f"{left!s:.16}", f"{right!s:.16}"
    if one.normalisation != two.normalisation:
        yield "normalisation", one.normalisation, two.normalisation


def _in_place(places: Sequence[Numbers], parts: Sequence[Slices]) -> Slices:
    """Slices of several folders, each at its places among all."""
    order = np.argsort(np.concatenate(places))

    def whole(columns: Iterable[Numbers]) -> Numbers:
        return np.concatenate([*columns])[order]

    seconds = [part.seconds for part in parts if part.seconds is not None]
    return Slices(
        shards=whole(part.shards for part in parts),
        starts=whole(part.starts for part in parts),
        ends=whole(part.ends for part in parts),
        seconds=Seconds(
            starts=whole(part.starts for part in seconds),
            ends=whole(part.ends for part in seconds),
            labels=whole(part.labels for part in seconds),
        )
        if seconds
        else None,
    )
