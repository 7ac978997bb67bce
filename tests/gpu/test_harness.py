"""The harness finds what fits, loses one row to one failure, and its table says what was not measured."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.model import clipped
from tests.gpu.__main__ import Worker, measure, row_of_tests
from tests.gpu.cases import SIDES, TILES, Group, groups
from tests.gpu.mixed import MixedLamb
from tests.gpu.rows import append, last_measured, measured, read
from tests.gpu.search import fits_in_memory, largest
from tests.gpu.table import NOT_MEASURED, markdown, planned

REPOSITORY = Path(__file__).parents[2]
GROUP = Group("step", "base", 512, "bf16", ("triton", "bert", "hf-nezha"))
ENVIRONMENT = {
    "kind": "environment",
    "time": "2026-11-22T10:00:00+00:00",
    "command": "tests/gpu/run.sh",
    "device": "NVIDIA H100 80GB HBM3",
    "memory_mib": 81559,
    "driver": "580.1",
    "cuda": "13.0",
    "python": "3.12.3",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "deepspeed": None,
    "transformers": "4.57.6",
}


def step_row(side, speed, group=GROUP):
    numbers = {"milliseconds": 10.0, "update_milliseconds": 1.0, "mfu": 0.512, "peak_mib": 12345.6}
    return group.row(side, batch=64, sequences_per_second=speed, **numbers)


@given(limit=st.integers(0, 9000), start=st.integers(1, 600), most=st.integers(1, 8192))
def test_the_largest_micro_batch_fits_and_a_sixteenth_more_does_not(limit, start, most):
    asked = []

    def fits(samples):
        asked.append(samples)
        return samples <= limit

    found = largest(fits, start, most)
    best = min(limit, most)
    assert found <= best <= found + max(0, found // 16)
    assert all(1 <= samples <= most for samples in asked)
    assert len(set(asked)) == len(asked) <= 26


def test_running_out_of_memory_is_an_answer_and_any_other_error_is_not():
    def of(error):
        raise error

    assert fits_in_memory(lambda: None)
    assert not fits_in_memory(lambda: of(torch.OutOfMemoryError("full")))
    with pytest.raises(RuntimeError, match="broken"):
        fits_in_memory(lambda: of(RuntimeError("broken")))


def test_masters_move_where_half_precision_would_stand_still():
    """A step of 1e-5 is below bf16's resolution at 1: the model alone would never move."""
    model = torch.nn.Linear(4, 4).bfloat16()
    torch.nn.init.ones_(model.weight)
    optimizer = MixedLamb(model)
    for _ in range(1000):
        optimizer.backward(model(torch.ones(2, 4, dtype=torch.bfloat16)).float().sum())
        optimizer.step()
    assert model.weight.max() < 1
    assert model.weight.grad is None


def test_the_first_groups_are_worth_most_and_no_row_comes_twice():
    planned_groups = groups()
    assert (planned_groups[0].size, planned_groups[0].length, planned_groups[0].dtype) == ("base", 512, "bf16")
    keys = [group.key(side) for group in planned_groups for side in group.sides]
    assert len(set(keys)) == len(keys)
    assert {key[5] for key in keys if key[0] != "tiles"} == set(SIDES)
    assert {(g.size, g.length, g.dtype, g.compiled) for g in planned_groups if g.kind == "step"} == {
        (size, length, dtype, compiled)
        for size in ("base", "large")
        for length in (128, 512)
        for dtype in ("bf16", "fp16")
        for compiled in (False, True)
    }


def test_the_first_choice_of_tiles_is_the_one_in_use():
    for kernel, (first, *_) in TILES.items():
        assert getattr(clipped, kernel)[64] == first


def test_groups_cross_to_the_other_process_whole():
    assert Group.from_json(json.loads(json.dumps(GROUP.to_json()))) == GROUP


def test_without_rows_the_table_says_that_nothing_was_measured():
    table = markdown([], planned([]))
    lines = [line for line in table.splitlines() if line.startswith(("| base", "| large"))]
    assert len(lines) == sum(len(group.sides) for group in groups())
    assert all(NOT_MEASURED in line for line in lines)
    assert "no GPU was at hand" in table


def test_the_docs_have_a_line_for_every_row():
    docs = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    for line in markdown([], groups()).splitlines():
        # Up to the side: what follows may have been measured.
        head = line.partition(NOT_MEASURED)[0].rstrip("| ")
        assert not line.startswith(("| base", "| large")) or head in docs


def test_the_table_shows_ratios_beside_the_aims_and_why_a_row_is_missing():
    rows = [ENVIRONMENT, step_row("bert", 100.0), step_row("triton", 93.0), GROUP.row("hf-nezha", error="a | b")]
    table = markdown(rows, [GROUP])
    assert "2026-11-22, `tests/gpu/run.sh` on NVIDIA H100 80GB HBM3, 81,559 MiB (driver 580.1, cuda 13.0" in table
    assert "| base | 512 | bf16 | no | triton | 64 | 93.0 | 10.0, 1.0 | 51.2% | 12,346 | 0.93 | – |" in table
    assert f"| hf-nezha | | {NOT_MEASURED} (a / b) |" in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {13, 6}


def test_compiled_rows_are_set_beside_the_eager_nezha_of_hugging_face():
    compiled = dataclasses.replace(GROUP, compiled=True, sides=("triton",))
    rows = [step_row("hf-nezha", 20.0), step_row("triton", 80.0, compiled)]
    assert "| yes | triton | 64 | 80.0 | 10.0, 1.0 | 51.2% | 12,346 | – | 4.00 |" in markdown(rows, [GROUP, compiled])


def test_a_second_run_mends_errors_and_measures_nothing_twice(tmp_path):
    path = tmp_path / "folder" / "rows.jsonl"
    for row in (step_row("bert", 1.0), GROUP.row("triton", error="took too long"), ENVIRONMENT):
        append(path, row)
    with path.open("a") as file:
        file.write('{"kind": "step", "cut')
    rows = read(path)
    assert measured(rows) == {GROUP.key("bert")}
    assert (
        last_measured([*rows, step_row("triton", 5.0), GROUP.row("triton", error="again")])[GROUP.key("triton")][
            "sequences_per_second"
        ]
        == 5.0
    )
    assert (
        list(measure([dataclasses.replace(GROUP, sides=("bert",))], measured(rows), "cpu", 60, tmp_path / "log")) == []
    )


def test_a_side_that_hangs_or_breaks_the_process_is_told_and_the_process_is_gone(tmp_path):
    worker = Worker("cpu", tmp_path / "log")
    rows = list(worker.rows(GROUP, time.monotonic()))
    assert rows == [GROUP.row("triton", error="took too long")]
    assert not worker.sound
    worker.end()
    with pytest.raises(ProcessLookupError):
        os.kill(worker._process.pid, 0)
    broken = Worker("no-such-device", tmp_path / "log")
    (row,) = broken.rows(GROUP, time.monotonic() + 3000)
    assert row["side"] == "triton"
    assert "the process ended with code 1" in row["error"]
    assert not broken.sound
    broken.end()


def test_no_time_left_is_no_error(tmp_path):
    assert list(measure([GROUP], set(), "cpu", 5.0, tmp_path / "log")) == []


def test_what_pytest_found_is_a_row(tmp_path):
    path = tmp_path / "tests.xml"
    cases = '<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase>'
    path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert row_of_tests(path) == {"kind": "tests", "passed": 1, "skipped": 1, "failed": 1, "failures": ["b"]}
    assert row_of_tests(tmp_path / "none.xml")["failed"] == 1


def test_a_dry_run_ends_with_rows_of_every_kind(tmp_path):
    """The whole script, on the CPU. What this version of ours or of transformers has not, is a row that says so."""
    rows = tmp_path / "rows.jsonl"
    done = subprocess.run(
        ["tests/gpu/run.sh", "--device", "cpu", "--quick", "--seconds", "36000", "--rows", str(rows)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHON": sys.executable, "WHEELS": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = read(rows)
    assert {row["kind"] for row in found} == {"environment", "tests", "step", "limit", "tiles"}
    steps = {row["side"]: row for row in found if row["kind"] == "step"}
    assert steps.keys() == SIDES.keys()
    assert steps["table"]["sequences_per_second"] > 0
    assert steps["table"]["loss"] < 20
    assert {row["side"]: row.get("micro_batch") for row in found if row["kind"] == "limit"}["table"] == 4
    assert "error" in steps["hf-nezha"], "transformers 5 has no NEZHA"
    assert done.stdout.count("| tiny |") == len(found) - 2
    assert str(REPOSITORY) not in rows.read_text()
