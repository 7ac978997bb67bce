"""mosaicml-streaming: rows as arrays in MDS shards of 64 MB, stacked by torch's DataLoader. No worker processes."""

from collections.abc import Callable
from pathlib import Path

import torch
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from tests.bench.rivals.samples import count, endless, padded

TOKENS = 1 << 20


def side(folder: str, length: int, batch: int, shuffled: bool) -> Callable[[], float]:
    """Tokens, padding included: batches of (batch, length) as tensors, epoch after epoch, going on from run to run."""
    out = Path(folder) / f"mds-{shuffled}"
    with MDSWriter(out=str(out), columns={"ids": f"ndarray:uint16:{length}"}, size_limit=1 << 26) as writer:
        for row in padded(folder, length):
            writer.write({"ids": row})
    data = StreamingDataset(local=str(out), shuffle=shuffled, batch_size=batch)
    batches = endless(DataLoader(data, batch_size=batch, collate_fn=_stack, drop_last=True))
    return lambda: count(batches, length, batch, TOKENS)


def _stack(rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """What the default does for dictionaries of arrays, with one look-up a row."""
    return torch.stack([torch.as_tensor(row["ids"]) for row in rows])
