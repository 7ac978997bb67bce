"""litdata: tokens end to end in chunks of 64 MB, blocks of them through its loader; no sentences, words or padding.

Chunks are mapped into memory and a sample is a view (TokensLoader), which is its fastest way. No worker processes.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming.cache import Cache

from tests.bench.rivals.samples import count, endless, padded

TOKENS = 1 << 23


def side(folder: str, length: int, batch: int, shuffled: bool) -> Callable[[], float]:
    """Tokens: batches of (batch, length) as tensors, epoch after epoch, going on from run to run."""
    out = Path(folder) / f"litdata-{shuffled}"
    _pack(folder, length, out)
    data = StreamingDataset(str(out), item_loader=TokensLoader(block_size=length), shuffle=shuffled, drop_last=True)
    batches = endless(StreamingDataLoader(data, batch_size=batch, num_workers=0, drop_last=True))
    return lambda: count(batches, length, batch, TOKENS)


def _pack(folder: str, length: int, out: Path) -> None:
    cache = Cache(str(out), chunk_bytes=1 << 26, item_loader=TokensLoader(block_size=length))
    for index, row in enumerate(padded(folder, length)):
        cache[index] = torch.from_numpy(row)
    cache.done()
    cache.merge()
