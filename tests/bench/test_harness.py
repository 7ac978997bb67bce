"""The harness measures what it says: turns alternate, memory is that of a run, a side that fails is heard."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tests.bench.harness import REPOSITORY, Reading, Side, SideError, compare, markdown, share, take_turns
from tests.bench.rows import ROWS


def side(mebibytes: int) -> Callable[[], float]:
    """For the processes that these tests start: takes that much memory in each run, and chatters."""

    def run() -> float:
        print("chatter")
        assert mebibytes < 1000, "too much"
        return len(bytearray(b"x") * (mebibytes << 20)) >> 20

    return run


def open_side(tmp_path: Path, mebibytes: int) -> Side:
    return Side(Path(sys.executable), __name__, {"mebibytes": mebibytes}, threads=1, log=tmp_path / "log")


def test_a_side_tells_work_time_and_peak_memory_of_each_run(tmp_path: Path) -> None:
    with open_side(tmp_path, 64) as opened:
        opened.wait()
        first, second = opened.run(), opened.run()
    for reading in (first, second):
        assert reading.amount == 64
        assert reading.seconds > 0
        assert 63 < reading.memory < 80
    assert "chatter" in (tmp_path / "log").read_text()


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    with open_side(tmp_path, 1000) as opened:
        opened.wait()
        with pytest.raises(SideError, match=r"exit code 1(.|\n)*too much"):
            opened.run()


def test_sides_take_turns_and_the_first_runs_do_not_count() -> None:
    order: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self) -> Reading:
            order.append(self.name)
            return Reading(amount=len(order), seconds=1.0, memory=0.0)

    ours, theirs = take_turns(cast(Side, Fake("A")), cast(Side, Fake("B")), runs=2)
    assert order == ["A", "B"] * 3
    assert [one.speed for one in ours] == [3, 5]
    assert [one.speed for one in theirs] == [4, 6]


def test_a_ratio_above_one_means_that_we_are_ahead() -> None:
    faster = compare("step", "samples/s", "rival", [9, 10, 30], [4, 5, 6], "")
    smaller = compare("step-memory", "MiB", "rival", [9, 10, 30], [4, 5, 6], "", smaller=True)
    assert (faster.ours, faster.theirs, faster.ratio, faster.runs) == (10, 5, 2, 3)
    assert smaller.ratio == 0.5
    assert faster.ours_range == (9, 30)


def test_a_share_is_the_needed_arithmetic_by_the_median_product() -> None:
    ours, theirs = ([Reading(amount=8, seconds=seconds, memory=0) for seconds in side] for side in ((2, 4), (8, 8)))
    products = [Reading(amount=speed, seconds=1, memory=0) for speed in (90, 100, 500)]
    one = share("step-share", "rival", 20, ours, theirs, products)
    assert one.ours_range == (40, 80)
    assert (one.ours, one.theirs, one.ratio) == (60, 20, 3)


def test_the_table_for_the_docs_reads_as_numbers_are_written_there() -> None:
    rows = [compare("a", "u", "them", [16.559], [0.2365], ""), compare("b", "u", "them", [1308.9], [999.4], "")]
    assert markdown(rows).splitlines()[2:] == [
        "| a | u | 16.6 | them | 0.236 | 70.02 |",
        "| b | u | 1,309 | them | 999 | 1.31 |",
    ]


def test_every_row_has_a_known_name_and_two_sides() -> None:
    names = [name for row in ROWS for name in (row.name, row.memory, row.share and row.share.name) if name]
    assert len(set(names)) == len(names)
    kinds = ("prepare", "read", "mask", "loader", "step", "lamb", "scrape", "watch")
    assert {next(kind for kind in kinds if name.startswith(kind)) for name in names} == set(kinds)
    for module in {module for row in ROWS for module in (row.ours, row.theirs)}:
        assert (REPOSITORY / "tests" / "bench" / f"{module.replace('.', '/')}.py").is_file()
