"""What is wrong with an input, by kind and place; and the line of that place, counted only when somebody asks.

A fault stays a place in bytes for as long as possible: to count lines is to read the file again, at 2 GB/s (packed: as
fast as it unpacks). The report asks once for all faults of a file, whatever task met them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Literal, NoReturn

from nezha_ds.config import Settings
from nezha_ds.corpus.location import Location, name_of
from nezha_ds.corpus.packing import BLOCK_BYTES, open_text
from nezha_ds.errors import DataError

NAMED = 20
"""How many faults of a task are named; all are counted."""

FaultKind = Literal[
    "empty file",
    "damaged file",
    "not UTF-8",
    "not Unicode",
    "not JSON",
    "half block",
    "wrong field",
    "too long",
]


class Fault(Settings):
    """One thing that is wrong with an input."""

    kind: FaultKind
    path: Location
    place: int | None
    """A byte of the unpacked text, or a row of a table; None is the whole file."""
    reason: str
    """What is wrong and the way out, without the place."""
    in_table: bool = False
    """Whether `place` counts rows."""


OnFault = Callable[[Fault], None]


class Faults:
    """The handler that goes on: counts every fault by kind, and keeps the first few."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[Fault] = []

    def __call__(self, fault: Fault) -> None:
        """Note one fault."""
        self.counts[fault.kind] += 1
        if len(self.first) < NAMED:
            self.first.append(fault)


def stop(fault: Fault) -> NoReturn:
    """The handler that ends the reading at the first fault, as a DataError."""
    raise DataError(*tell([fault]))


def tell(faults: Iterable[Fault]) -> list[str]:
    """`FILE, line N: reason` (or `FILE is …`) for each, in order; consecutive faults of a file take one reading."""
    return [
        text for path, group in groupby(faults, key=lambda fault: fault.path) for text in _tell_of_file(path, [*group])
    ]


def _tell_of_file(path: Location, faults: Sequence[Fault]) -> list[str]:
    places = {fault.place for fault in faults if fault.place is not None and not fault.in_table}
    lines = line_numbers(path, places)
    return [f"{name_of(path)}{_place(fault, lines)} {fault.reason}" for fault in faults]


def _place(fault: Fault, lines: dict[int, int]) -> str:
    if fault.place is None:
        return ""
    return f", row {fault.place + 1:,}:" if fault.in_table else f", line {lines[fault.place]:,}:"


def line_numbers(path: Location, places: Iterable[int]) -> dict[int, int]:
    """The line, from 1, in which each byte of the unpacked file stands; read only as far as the last of them."""
    lines, place, numbers = 1, 0, dict[int, int]()
    ascending = sorted(places)
    if not ascending or ascending[-1] == 0:
        return dict.fromkeys(ascending, 1)
    with open_text(path) as file:
        for wanted in ascending:
            while place < wanted and (block := file.read(min(BLOCK_BYTES, wanted - place))):
                lines, place = lines + block.count(b"\n"), place + len(block)
            numbers[wanted] = lines
    return numbers
