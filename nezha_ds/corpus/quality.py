"""What a preparation saw of its documents: enough to choose the limits of cleaning from one run without any.

- For each reason: documents and characters left out, and the beginnings of a few (those with the lowest keys).
- For each thing that a predicate looks at, on or off: how it is distributed over the documents kept and left out.
- The lines that stand in most documents kept, which is what boilerplate looks like.

Counts are of all documents. Distributions and lines are of one in `every`, chosen by the document's key, since to
measure all would cost half of a preparation's time: one in 32 (2%), or fewer so that about 32 MB of text are measured,
or all of a corpus under 8 MB. Every task tallies its own documents, and the tallies are added up, so that the result is
the same from any number of processes and after any restart.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from nezha_ds.config import Settings
from nezha_ds.corpus.clean import (
    Candidate,
    characters,
    chinese_share,
    control_share,
    repeated_lines,
    repeated_passages,
)

EXAMPLES = 3
"""Beginnings that are shown for a reason."""
BEGINNING = 60
"""Characters of a beginning."""
LINE = (2, 100)
"""Fewest and most characters of a line that is counted: what surrounds a text is short."""
LISTED = 50
"""Lines that a task hands on: 12 KB, 150 MB for the tasks of a terabyte."""
COUNTED = 1 << 17
"""Lines that a task counts at once, at most: about 30 MB."""

_ALL_BELOW = 8 << 20
_MEASURED = 32 << 20
_FEWEST = 32


def one_in(size: int) -> int:
    """Of how many documents one is measured when all are about `size` bytes of text."""
    return 1 if size < _ALL_BELOW else max(_FEWEST, size // _MEASURED)


# ----------------------------------------------------------------------------------------------------- what is measured


class Measure(NamedTuple):
    """A number that a predicate looks at."""

    of: Callable[[str], float]
    of_raw: bool
    """Whether it looks at the text as it was read."""
    at_least: bool
    """Whether a limit is the least that may stay, so that a bin begins with its edge; otherwise it ends with it."""
    edges: tuple[float, ...]


_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_SMALL_SHARES = (0.0, 0.0001, 0.001, *_SHARES)
_POWERS = tuple(float(1 << power) for power in range(25))

MEASURES: Mapping[str, Measure] = {
    "characters": Measure(characters, of_raw=False, at_least=True, edges=_POWERS),
    "share of Chinese": Measure(chinese_share, of_raw=False, at_least=True, edges=_SHARES),
    "repeated lines": Measure(repeated_lines, of_raw=False, at_least=False, edges=_SMALL_SHARES),
    "repeated passages": Measure(repeated_passages, of_raw=False, at_least=False, edges=_SMALL_SHARES),
    "control characters": Measure(control_share, of_raw=True, at_least=False, edges=_SMALL_SHARES),
}
"""By the name that the report gives them."""


def bin_of(measure: Measure, candidate: Candidate) -> int:
    """Which of the E + 1 bins between E edges a document falls into."""
    value = measure.of(candidate.raw if measure.of_raw else candidate.text)
    return (bisect_right if measure.at_least else bisect_left)(measure.edges, value)


class Distribution(Settings):
    """How many of the measured documents fall between the edges: below the first, …, beyond the last."""

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]


class Count(Settings):
    """Documents, and their characters, white space included."""

    documents: int
    characters: int


class Example(Settings):
    """How a document begins."""

    key: int
    beginning: str


class Quality(Settings):
    """What one task saw, or all."""

    kept: Count
    dropped: dict[str, Count]
    """By reason."""
    measured_one_in: int
    """Of how many documents one was measured for what follows `examples`."""
    examples: dict[str, tuple[Example, ...]]
    """By reason, those with the lowest keys."""
    distributions: dict[str, Distribution]
    """Of the measured documents, empty ones left out, by what was measured."""
    lines: dict[str, int]
    """How many of the measured documents kept have a line, for those that most have, and more than one."""
    lines_short_by: int
    """A count may be so many too low, and a line that is not listed may stand in so many more than the last that is."""


# ------------------------------------------------------------------------------------------------------------ the tally


class Tally:
    """Counts documents while a task goes through them."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._counts: dict[str | None, list[int]] = {None: [0, 0]}
        self._examples: dict[str, list[Example]] = {}
        self._bins = {(name, kept): Counter[int]() for name in MEASURES for kept in (True, False)}
        self._lines = LineCounter()

    def keep(self, candidate: Candidate, key: int) -> None:
        """Count a document that stays."""
        self._count(None, candidate, key)
        if key % self._every == 0:
            self._lines.add(candidate.text)

    def drop(self, candidate: Candidate, key: int, reason: str) -> None:
        """Count a document that is left out."""
        self._count(reason, candidate, key)
        if reason != "empty":
            example = Example(key=key, beginning=candidate.text[:BEGINNING].replace("\n", " "))
            self._examples[reason] = lowest([*self._examples.get(reason, ()), example])

    def _count(self, reason: str | None, candidate: Candidate, key: int) -> None:
        count = self._counts.setdefault(reason, [0, 0])
        count[0] += 1
        count[1] += len(candidate.text)
        if key % self._every == 0 and reason != "empty":
            for name, measure in MEASURES.items():
                self._bins[name, reason is None][bin_of(measure, candidate)] += 1

    def quality(self) -> Quality:
        """What was counted."""
        counts = {reason: Count(documents=one[0], characters=one[1]) for reason, one in self._counts.items()}
        lines, short_by = self._lines.most()
        return Quality(
            kept=counts[None],
            dropped={reason: count for reason, count in counts.items() if reason},
            measured_one_in=self._every,
            examples={reason: tuple(examples) for reason, examples in self._examples.items()},
            distributions={name: self._distribution(name, measure) for name, measure in MEASURES.items()},
            lines=lines,
            lines_short_by=short_by,
        )

    def _distribution(self, name: str, measure: Measure) -> Distribution:
        kept, dropped = (
            tuple(self._bins[name, side][place] for place in range(len(measure.edges) + 1)) for side in (True, False)
        )
        return Distribution(edges=measure.edges, kept=kept, dropped=dropped)


def lowest(examples: Iterable[Example]) -> list[Example]:
    """Up to EXAMPLES of them, with different keys, the lowest first."""
    different = {example.key: example for example in examples}
    return [different[key] for key in sorted(different)[:EXAMPLES]]


class LineCounter:
    """How many documents have a line, for those that many have, in bounded memory.

    Whenever more than COUNTED lines are known, the half with the lower counts is forgotten. A line may have lost what
    the forgotten had at most, each time: that is known and told (lossy counting; Manku and Motwani, VLDB 2002).
    """

    def __init__(self, counted: int = COUNTED, listed: int = LISTED) -> None:
        self._counts: Counter[str] = Counter()
        self._forgotten = 0
        self._counted, self._listed = counted, listed

    def add(self, text: str) -> None:
        """Count each line of a document once."""
        shortest, longest = LINE
        self._counts.update({line for line in text.split("\n") if shortest <= len(line) <= longest})
        if len(self._counts) > self._counted:
            middle = sorted(self._counts.values())[len(self._counts) // 2]
            self._counts = Counter({line: count for line, count in self._counts.items() if count > middle})
            self._forgotten += middle

    def most(self) -> tuple[dict[str, int], int]:
        """The lines that more than one document has, most first, and by how much a count may be short."""
        listed, best = most_frequent(self._counts, self._listed)
        return listed, self._forgotten + best


def most_frequent(counts: Mapping[str, int], listed: int) -> tuple[dict[str, int], int]:
    """Up to `listed` lines that more than one document has, most first, and the count of the best that is left out."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    chosen = {text: count for text, count in ordered[:listed] if count > 1}
    return chosen, max((count for _, count in ordered[len(chosen) : len(chosen) + 1]), default=0)


def together(parts: Sequence[Quality], listed: int) -> Quality:
    """The tallies of tasks as one."""
    counts, examples, lines = dict[str, list[Count]](), dict[str, list[Example]](), Counter[str]()
    for part in parts:
        for reason, count in part.dropped.items():
            counts.setdefault(reason, []).append(count)
        for reason, some in part.examples.items():
            examples.setdefault(reason, []).extend(some)
        lines.update(part.lines)
    return Quality(
        kept=_sum([part.kept for part in parts]),
        dropped={reason: _sum(counts[reason]) for reason in sorted(counts)},
        measured_one_in=max((part.measured_one_in for part in parts), default=1),
        examples={reason: tuple(lowest(examples[reason])) for reason in sorted(examples)},
        distributions={name: _sum_of(name, measure, parts) for name, measure in MEASURES.items()},
        lines=most_frequent(lines, listed)[0],
        lines_short_by=sum(part.lines_short_by for part in parts),
    )


def _sum(counts: Sequence[Count]) -> Count:
    return Count(
        documents=sum(count.documents for count in counts), characters=sum(count.characters for count in counts)
    )


def _sum_of(name: str, measure: Measure, parts: Sequence[Quality]) -> Distribution:
    empty = [(0,) * (len(measure.edges) + 1)]
    found = [part.distributions[name] for part in parts]
    return Distribution(
        edges=measure.edges,
        kept=tuple(map(sum, zip(*empty, *(one.kept for one in found), strict=True))),
        dropped=tuple(map(sum, zip(*empty, *(one.dropped for one in found), strict=True))),
    )
