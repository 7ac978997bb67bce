"""Whole runs in fp16 on two ranks, emulated, one of which overflows: skipped, counted, killed, resumed, ended.

The processor is told to have no fp16 of its own, so that the same road is gone on every machine.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from nezha_ds.errors import Exit
from nezha_ds.observe.events import Record, Save
from nezha_ds.observe.values import values_of
from tests.helpers import runs
from tests.helpers.runs import Run

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]

SCRIPT = "tests/train/scripts/overflowing_pretrain.py"
SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
FP16 = {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 5, "hysteresis": 2}
OVERFLOWS = "2,5"
"""The first uses hysteresis up, the second halves the scale; a checkpoint lies between them."""
SHORT = {"enabled": True, "initial_scale_power": 1, "loss_scale_window": 5, "hysteresis": 1}
EMULATED = "fp16 is EMULATED (train.emulate_fp16)"


@pytest.fixture(scope="module", autouse=True)
def without_fp16() -> Iterator[None]:
    """Processes that are started find a processor whose instructions end before AVX512-FP16, and no gate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
        patch.setenv("LAST_STEP", str(10**9))
        patch.setenv("OVERFLOWS", OVERFLOWS)
        yield


def make(folder: Path, shards: Path, *settings: str, **deepspeed: object) -> Run:
    run = runs.make(folder, shards, "train.emulate_fp16=true", *settings, **{"fp16": FP16, **SUMS, **deepspeed})
    run.script = SCRIPT
    return run


def records(run: Run) -> list[Record]:
    return [event for event in run.events() if isinstance(event, Record)]


def counters(run: Run, step: int) -> dict[str, object]:
    return json.loads((run.checkpoint(step) / "state.json").read_text())["counters"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> tuple[Run, str]:
    """Twelve steps under ZeRO-1, dropout on, with checkpoints at 4, 8 and 12; and what was printed."""
    run = make(tmp_path_factory.mktemp("undisturbed"), embedded)
    return run, run.finish(world_size=2)


def test_the_emulation_is_loud_and_told_once(undisturbed: tuple[Run, str]) -> None:
    _, printed = undisturbed
    assert printed.count(EMULATED) == 1
    assert "WARNING fp16 is EMULATED (train.emulate_fp16): cpu here has none" in printed


def test_overflows_are_skipped_and_counted(undisturbed: tuple[Run, str]) -> None:
    run, printed = undisturbed
    told = records(run)
    assert [record.skipped_steps for record in told] == [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert [record.loss_scale for record in told] == [256] * 5 + [128] * 6 + [256]
    counted = [value.value for event in told for value in values_of(event) if "overflow_steps_total" in value.name]
    assert sum(counted) == 2
    assert printed.count("skipped 1") == 2
    assert counters(run, 12)["skipped_steps"] == 2
    assert counters(run, 12)["updates"] == 10


def test_a_skipped_step_does_not_move_the_schedule(undisturbed: tuple[Run, str]) -> None:
    run, _ = undisturbed
    rates = {record.step: record.learning_rate for record in records(run)}
    assert (rates[3], rates[6]) == (rates[2], rates[5])
    assert counters(run, 12)["schedule"] == {"done": 10}


@pytest.mark.timing
def test_two_n_steps_equal_n_kill_n(undisturbed: tuple[Run, str], tmp_path: Path, embedded: Path) -> None:
    """Killed in the middle of a window, with hysteresis used up: the same bytes, scales and counts."""
    expected, run = undisturbed[0], make(tmp_path, embedded)
    launcher = run.start(world_size=2, last_step=7)
    run.wait_for_step(6, launcher)
    runs.kill_all(launcher)
    assert "going on from step-00000004" in run.finish(world_size=2)
    for step in (8, 12):
        assert run.tensors(step) == expected.tensors(step)
        assert counters(run, step) == counters(expected, step)
    assert run.losses() == expected.losses()
    scales = {record.step: record.loss_scale for record in records(run)}
    assert scales == {record.step: record.loss_scale for record in records(expected)}


# ---------------------------------------------------------------------------------------------------------- the minimum


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> tuple[Run, list[int], str]:
    """A scale of 2 that halves at the sixth step and can no more at the seventh; exit codes, and what was printed."""
    run = make(tmp_path_factory.mktemp("diverged"), embedded, "train.save_every=5", "train.log_every=4", fp16=SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVERFLOWS", "5-")
        ranks = run.start_ranks(world_size=2, last_step=10**9)
        printed = [rank.communicate(timeout=600)[0] for rank in ranks]
    return run, [rank.returncode for rank in ranks], "".join(printed)


def test_at_the_minimum_every_rank_ends_with_the_code_of_a_divergence(diverged: tuple[Run, list[int], str]) -> None:
    _, codes, printed = diverged
    assert codes == [Exit.DIVERGED] * 2, printed
    assert "Traceback" not in printed
    line = next(line for line in printed.splitlines() if "minimum loss scale" in line)
    assert (
        "step 7: gradients overflow at the minimum loss scale 1, 2 steps in a row (last sound gradient norm: " in line
    )
    assert "lower optimizer.params.lr, lengthen the warm-up, or take a bf16 JSON, and start the same command" in line


def test_what_came_before_is_told_and_saved(diverged: tuple[Run, list[int], str]) -> None:
    run, _, _ = diverged
    assert [(record.step, record.skipped_steps) for record in records(run)] == [(4, 0), (6, 1)]
    assert [event.step for event in run.events() if isinstance(event, Save)] == [5, 6]
    # The sixth step was skipped and the seventh never was: as after the fifth.
    assert run.tensors(6) == run.tensors(5)
    before, after = counters(run, 5), counters(run, 6)
    assert (before["updates"], before["skipped_steps"]) == (5, 0)
    assert (after["updates"], after["skipped_steps"]) == (5, 1)
    assert after["schedule"] == before["schedule"]


def test_the_run_goes_on_from_there(diverged: tuple[Run, list[int], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16, when what overflowed does not any more; and then in bf16, as the message says."""
    run, _, _ = diverged
    monkeypatch.setenv("OVERFLOWS", "")
    settings = (*run.settings, "train.log_every=1")
    run.settings = settings
    assert "going on from step-00000006" in run.finish()
    told = {record.step: record for record in records(run)}
    # A window of sound steps, and one more, after the sixth.
    assert [told[step].loss_scale for step in range(7, 13)] == [1, 1, 1, 1, 1, 2]
    assert not any(told[step].skipped_steps for step in range(7, 13))
    tree = json.loads(run.ds_config.read_text())
    del tree["fp16"]
    run.ds_config.write_text(json.dumps(tree | {"bf16": {"enabled": True}}))
    run.settings = (*settings, "train.steps=14")
    assert "going on from step-00000012" in run.finish()
    assert counters(run, 14)["updates"] == 13
    assert records(run)[-1].loss_scale is None
    assert all(math.isfinite(loss) for loss in run.losses().values())
