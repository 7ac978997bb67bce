"""mosaicml-streaming shuffled, then Hugging Face's whole-word collator, through torch's DataLoader without workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from tests.bench.rivals.samples import collator, count, endless, example, samples

TOKENS = 1 << 18


def side(folder: str, length: int, batch: int) -> Callable[[], float]:
    """Tokens, padding included: batches of (batch, length) of masked ids and labels, going on from run to run."""
    out = Path(folder) / f"mds-masked-{length}"
    with MDSWriter(out=str(out), columns={"ids": "ndarray:uint16", "inside": "ndarray:uint16"}) as writer:
        for one in samples(folder, length):
            writer.write(one._asdict())
    collate = collator(folder)

    def masked(rows: list[dict[str, Any]]) -> Any:
        return collate([example(row["ids"], row["inside"]) for row in rows])["input_ids"]

    data = StreamingDataset(local=str(out), shuffle=True, batch_size=batch)
    batches = endless(DataLoader(data, batch_size=batch, collate_fn=masked, drop_last=True))
    return lambda: count(batches, length, batch, TOKENS)
