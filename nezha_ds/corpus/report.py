"""What became of the input: documents kept, left out by reason, and passed over because they were broken; and what the
documents were like, so that limits can be chosen (`quality`). Written beside the manifest, shown on the terminal.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nezha_ds.config import Settings
from nezha_ds.corpus.encode import Receipt
from nezha_ds.corpus.faults import Faults, tell
from nezha_ds.corpus.quality import Distribution, Quality, together

REPORT = "report.json"

_SHOWN = 5
"""How many faults, and lines, the terminal sees; the report has more."""
_LISTED = 30
"""How many lines the report has."""


class Report(Settings):
    """What became of the input's documents."""

    kept: int
    dropped: dict[str, int]
    """By reason: `empty`, `copies`, `near copies`, or the name of the predicate that failed."""
    kept_characters: int
    dropped_characters: dict[str, int]
    """By reason, after normalisation, white space included."""
    removed_lines: int
    """Lines removed as boilerplate from documents that stayed."""
    examples: dict[str, tuple[str, ...]]
    """How a few documents left out begin, by reason."""
    measured_one_in: int
    """Of how many documents one was measured for what follows, chosen by a hash of its text."""
    distributions: dict[str, Distribution]
    """Of what predicates look at, whether they are on or off."""
    frequent_lines: dict[str, int]
    """How many of the measured documents kept have a line, for those that most have."""
    frequent_lines_short_by: int
    """A count may be so many too low, and a line that is not listed may stand in so many more than the last that is."""
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
    quality: Quality = together([receipt.quality for receipt in receipts], _LISTED)
    faults = sum((Counter(receipt.faults) for receipt in receipts), before.counts)
    first = [*before.first, *(fault for receipt in receipts for fault in receipt.first_faults)]
    return Report(
        kept=quality.kept.documents,
        dropped={reason: count.documents for reason, count in quality.dropped.items()},
        kept_characters=quality.kept.characters,
        dropped_characters={reason: count.characters for reason, count in quality.dropped.items()},
        removed_lines=sum(receipt.removed_lines for receipt in receipts),
        examples={reason: tuple(one.beginning for one in some) for reason, some in quality.examples.items()},
        measured_one_in=quality.measured_one_in,
        distributions=quality.distributions,
        frequent_lines=quality.lines,
        frequent_lines_short_by=quality.lines_short_by,
        faults=dict(sorted(faults.items())),
        first_faults=tuple(tell(first)),
    )


def folder_report(folder: Path) -> Report | None:
    """What became of the input; None where the report is gone or of another version, as nothing depends on it."""
    try:
        return Report.model_validate_json((folder / REPORT).read_bytes())
    except (OSError, ValidationError):
        return None


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


# ---------------------------------------------------------------------------------------------------------- the showing


def show_report(report: Report, console: Console) -> None:
    """Print what was left out and what the documents are like."""
    console.print(_losses(report))
    console.print(_measures(report))
    if report.frequent_lines:
        console.print("[bold]lines that most documents kept have[/], by documents measured:")
        for line, documents in [*report.frequent_lines.items()][:_SHOWN]:
            console.print(f"  {documents:,}  {escape(line)}")


def _losses(report: Report) -> Table:
    grid = Table("", "documents", "share", "characters", "share", "for instance", box=None, header_style="bold")
    documents = report.kept + sum(report.dropped.values())
    characters = report.kept_characters + sum(report.dropped_characters.values())
    rows = [("kept", report.kept, report.kept_characters, "")] + [
        (reason, count, report.dropped_characters[reason], next(iter(report.examples.get(reason, ())), ""))
        for reason, count in report.dropped.items()
    ]
    for name, some, size, example in rows:
        shares = f"{some / max(1, documents):.1%}", f"{size / max(1, characters):.1%}"
        grid.add_row(name, f"{some:,}", shares[0], f"{size:,}", shares[1], escape(example[:_EXAMPLE]))
    for column in grid.columns[1:5]:
        column.justify = "right"
    for column in grid.columns[:5]:
        column.no_wrap = True  # on a narrow terminal the example gives way
    return grid


_EXAMPLE = 10
"""Characters of an example on the terminal."""
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def _measures(report: Report) -> Table:
    lengths = report.distributions["characters"]
    sample = f"of {sum(lengths.kept) + sum(lengths.dropped):,} measured"
    if report.measured_one_in > 1:
        sample += f" (1 in {report.measured_one_in:,})"
    grid = Table(sample, *(f"{share:.0%} below" for share in _QUANTILES), box=None, header_style="bold")
    for name, one in report.distributions.items():
        grid.add_row(name, *_quantiles(one))
    return grid


def _quantiles(one: Distribution) -> Iterator[str]:
    """For each of _QUANTILES the first edge that at least so many documents, kept or not, are below."""
    counts = [kept + dropped for kept, dropped in zip(one.kept, one.dropped, strict=True)]
    for share in _QUANTILES:
        below, place = counts[0], 0
        while below < share * sum(counts):
            place += 1
            below += counts[place]
        yield f"{one.edges[place]:,.6g}" if place < len(one.edges) else "all"
