"""Text to finished shards as a user prepares them: reading, normalising, words, tokens, sentences, writing, hashing."""

import shutil
from collections.abc import Callable
from pathlib import Path

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings


def side(folder: str, copies: int, workers: int) -> Callable[[], float]:
    """MB of UTF-8: the shipped texts `copies` times. A new folder each time, so that nothing made before counts."""
    source = Path(folder) / "text.txt"
    megabytes = copies * source.stat().st_size / 1e6
    out = Path(folder) / f"prepared-by-{workers}"

    def run() -> float:
        shutil.rmtree(out, ignore_errors=True)
        prepare(PrepareSettings(inputs=(str(source),) * copies, out=out, workers=workers), progress=False)
        return megabytes

    return run
