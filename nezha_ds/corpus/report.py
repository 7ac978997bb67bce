"""What became of the input: documents kept, left out by reason, and passed over because they were broken."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nezha_ds.config import Settings
from nezha_ds.corpus.encode import Receipt
from nezha_ds.corpus.faults import Faults, tell

_SHOWN = 5
"""How many faults the terminal sees; the report has more."""


class Report(Settings):
    """What became of the input's documents."""

    kept: int
    dropped: dict[str, int]
    """By reason: `empty`, `copies`, or the name of the predicate that failed."""
    removed_lines: int
    """Lines removed as boilerplate from documents that stayed, later copies among them."""
    faults: dict[str, int]
    """What was broken and passed over, by kind."""
    first_faults: tuple[str, ...]
    """The first faults of each task, with file and line, reason and way out."""

    @property
    def losses(self) -> list[tuple[str, int]]:
        """All reasons and kinds with their counts."""
        return [*self.dropped.items(), *self.faults.items()]


def make_report(receipts: Sequence[Receipt], before: Faults) -> Report:
    """The tasks' receipts and the faults met before there were tasks, together; counts lines of broken files."""
    dropped = sum((Counter(receipt.dropped) for receipt in receipts), Counter[str]())
    faults = sum((Counter(receipt.faults) for receipt in receipts), before.counts)
    first = [*before.first, *(fault for receipt in receipts for fault in receipt.first_faults)]
    return Report(
        kept=sum(shard.documents for receipt in receipts for shard in receipt.shards),
        dropped=dict(sorted(dropped.items())),
        removed_lines=sum(receipt.removed_lines for receipt in receipts),
        faults=dict(sorted(faults.items())),
        first_faults=tuple(tell(first)),
    )


def summary(report: Report, path: Path) -> str:
    """A few lines for the terminal: how many faults of each kind, and the first of them."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.faults.items())
    lines = [
        f"faults of the input passed over: {kinds}",
        *report.first_faults[:_SHOWN],
    ]
    if sum(report.faults.values()) > len(lines) - 1:
        lines.append(f"more in {path}")
    return "\n".join(lines)
