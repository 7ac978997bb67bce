"""What became of the input: documents kept, left out by reason, and passed over because they were broken."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nezha_ds.config import Settings
from nezha_ds.corpus.encode import Receipt
from nezha_ds.corpus.faults import Faults, tell

_SHOWN = 5
"""How many faults the terminal sees; the report has more."""


class SourceReport(Settings):
    """What became of one source's documents."""

    documents: int
    """Kept."""
    tokens: int
    """Of those."""
    dropped: dict[str, int]
    """Documents, by reason."""
    faults: dict[str, int]
    """What was broken and passed over, by kind."""

    @property
    def losses(self) -> list[tuple[str, int]]:
        """All reasons and kinds with their counts."""
        return [*self.dropped.items(), *self.faults.items()]


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
    sources: dict[str, SourceReport]
    """The same of each source."""


def make_report(receipts: Sequence[Receipt], before: Mapping[str, Faults]) -> Report:
    """The tasks' receipts and the faults met in each source before there were tasks, together; counts lines of broken
    files.
    """
    sources = {
        name: _of_source([receipt for receipt in receipts if receipt.source == name], faults)
        for name, faults in before.items()
    }
    first = [
        *(fault for faults in before.values() for fault in faults.first),
        *(fault for receipt in receipts for fault in receipt.first_faults),
    ]
    return Report(
        kept=sum(source.documents for source in sources.values()),
        dropped=_total([source.dropped for source in sources.values()]),
        removed_lines=sum(receipt.removed_lines for receipt in receipts),
        faults=_total([source.faults for source in sources.values()]),
        first_faults=tuple(tell(first)),
        sources=sources,
    )


def _of_source(receipts: Sequence[Receipt], before: Faults) -> SourceReport:
    shards = [shard for receipt in receipts for shard in receipt.shards]
    return SourceReport(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        dropped=_total([receipt.dropped for receipt in receipts]),
        faults=_total([before.counts, *(receipt.faults for receipt in receipts)]),
    )


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sorted(sum(map(Counter, counts), Counter[str]()).items()))


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
