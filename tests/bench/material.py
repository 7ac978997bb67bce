"""What both sides of a row read, made once a call from the shipped text: 10.3 MB of statutes and a novel."""

import lzma
from itertools import chain
from pathlib import Path

import numpy as np

from nezha_ds.corpus.inputs import EMBEDDED, find_files
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.text.vocab import SHIPPED
from tests.bench.ours.samples import rows_of
from tests.bench.ours.scrape import exporter_of_a_run
from tests.bench.scraper import read

COPIES = 2
"""Of the text in the shards: 6M tokens, which no cache of a processor holds with its samples."""
PART = 8
"""Every eighth document is what a slow rival gets."""


def text(folder: Path) -> None:
    """text.txt, the shipped texts; part.txt, every PART-th of their documents; and the vocabulary."""
    texts = (lzma.decompress(path.read_bytes()).decode().strip() for path in find_files([EMBEDDED]))
    documents = list(chain.from_iterable(one.split("\n\n") for one in texts))
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    (folder / "part.txt").write_text("\n\n".join(documents[::PART]) + "\n")
    (folder / "vocab.txt").write_bytes(SHIPPED.read_bytes())


def shards(folder: Path) -> None:
    """shards/, our prepared form; samples-128.npz and samples-512.npz, the same as rows for the rivals to pack."""
    source = str(folder / "text.txt")
    prepare(PrepareSettings(inputs=(source,) * COPIES, out=folder / "shards", heldout=0), progress=False)
    for length in (128, 512):
        rows = rows_of(folder, length)
        np.savez(
            folder / f"samples-{length}.npz", ids=rows.ids.astype(np.uint16), lengths=rows.lengths, words=rows.words
        )


def exposition(folder: Path) -> None:
    """exposition-2.txt and -64.txt, what our exporter shows of runs of so many ranks, for a rival to show the same."""
    for ranks in (2, 64):
        exporter = exporter_of_a_run(ranks)
        (folder / f"exposition-{ranks}.txt").write_bytes(read(exporter.url))
        exporter.close()
