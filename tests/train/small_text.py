"""Sixty short documents, and their shards in half a second."""

from pathlib import Path

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings

DOCUMENTS = 60
TEXT = "\n\n".join(
    f"第{number}回。话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。" for number in range(DOCUMENTS)
)


def prepare_small(folder: Path) -> Path:
    """`folder`/shards, prepared from `folder`/text.txt in this process."""
    source, out = folder / "text.txt", folder / "shards"
    source.write_text(TEXT, encoding="utf-8")
    prepare(PrepareSettings(inputs=(str(source),), out=out, heldout=0.2, workers=1), progress=False)
    return out


def swap_two_entries(vocabulary: Path) -> None:
    """As many entries, all of them known, two in each other's place: ids mean something else."""
    lines = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    lines[5000], lines[5001] = lines[5001], lines[5000]
    vocabulary.write_text("\n".join(lines) + "\n", encoding="utf-8")
