"""Shards in a bucket against the same in a folder: time to the first batch, and tokens a second once they are cached.

    python -m tests.bench.ours.remote [SHARDS] [SENTENCES]

The store is on this machine, so a cold start shows what our side costs, not a network.
"""

import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from nezha_ds.data.loader import Loader, Stream, build_loader
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.world import World
from tests.data.folders import RANDOM_IDS, SPECIAL, random_columns, write_folder
from tests.helpers import s3

BATCHES, TURNS = 1500, 5


def loader(place: object, cache: Path) -> Loader:
    data = DataSettings(shards=str(place), cache=str(cache))
    stream = Stream(data, MaskingSettings(), 1, 64, World(), SPECIAL, RANDOM_IDS)
    return build_loader(stream, global_batch=64, first=0)


def first_batch(place: object, cache: Path) -> float:
    """Seconds from nothing to the first batch."""
    began = time.perf_counter()
    with loader(place, cache) as batches:
        next(batches)
        return time.perf_counter() - began


def rate(place: object, cache: Path) -> float:
    """Millions of tokens a second."""
    with loader(place, cache) as batches:
        next(batches)
        began = time.perf_counter()
        tokens = sum(int(batch.lengths.sum()) for batch in islice(batches, BATCHES))
        return tokens / (time.perf_counter() - began) / 1e6


def main(shards: int = 16, sentences: int = 300_000) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, s3.serve(Path(name) / "store") as store:
        os.environ.update(store.environment)
        root, folder = Path(name), Path(name) / "prepared"
        folder.mkdir()
        manifest = write_folder(folder, [random_columns(number, sentences) for number in range(shards)])
        (folder / "vocab.txt").write_text("[PAD]\n")
        print(f"{shards} shards of {manifest.shards[0].bytes / 1e6:.1f} MB; load {os.getloadavg()[0]:.1f}")
        uri = store.upload(folder, "bench/prepared")
        print(f"first batch, nothing cached, plan to be built  {first_batch(uri, root / 'cache'):6.2f} s")
        print(f"first batch in a folder, plan to be built      {first_batch(folder, root):6.2f} s")
        store.upload(folder, "bench/prepared")
        cold = [first_batch(uri, root / f"cold-{turn}") for turn in range(TURNS)]
        print(f"first batch, nothing cached, plan in the bucket {statistics.median(cold):5.2f} s")
        pairs = [(first_batch(uri, root / "cache"), first_batch(folder, root)) for _ in range(TURNS)]
        warm, local = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"first batch, all cached                        {warm:6.2f} s, in a folder {local:.2f} s")
        pairs = [(rate(uri, root / "cache"), rate(folder, root)) for _ in range(TURNS)]
        cached, local = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"tokens a second, all cached                    {cached:6.1f} M, in a folder {local:.1f} M")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
