"""fp16 on two ranks: what an overflow moves and what not, how the scale moves and ends, what gradients add up to.

All from one start of two ranks; scripts/fp16_steps.py describes it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ranks
from tests.train.scripts.fp16_steps import OPTIMIZERS, RULES, TRACE

SCRIPT = "tests/train/scripts/fp16_steps.py"
STAGES = (1, 2)

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, extensions: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fp16")
    with pytest.MonkeyPatch.context() as patch:
        # On every machine a processor whose instructions end before AVX512-FP16.
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
        ranks.run_well(ranks.our_command(SCRIPT, str(folder), ranks=2))
    return json.loads((folder / "told.json").read_text())


# --------------------------------------------------------------------------------------------------------- an overflow


@pytest.fixture(params=[f"{stage} {optimizer}" for stage in STAGES for optimizer in OPTIMIZERS])
def skipped(told: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of each ZeRO stage with each optimizer."""
    return told["skipped"][request.param]


def test_fp16_never_comes_to_the_optimizer_that_ignores_hysteresis(skipped: dict[str, Any]) -> None:
    assert skipped["wrapper"] == "DeepSpeedZeroOptimizer"


def test_an_overflow_on_one_rank_moves_nothing_on_any(skipped: dict[str, Any]) -> None:
    before, after = skipped["before"], skipped["after"]
    assert not skipped["made"]
    for what in ("bits", "rate", "updates", "schedule"):
        assert after[what] == before[what], what
    assert (before["skipped_steps"], after["skipped_steps"]) == (0, 1)


def test_steps_after_a_skipped_one_are_as_if_it_had_not_been(skipped: dict[str, Any]) -> None:
    """Gradients of the skipped one, and moments that it had begun, would show."""
    end, without = skipped["end"], skipped["end without"]
    for what in ("bits", "rate", "updates", "schedule", "scale"):
        assert end[what] == without[what], what
    assert end["bits"] != skipped["after"]["bits"]


# ----------------------------------------------------------------------------------------------------------- the scale


def expected(power: int, window: int, hysteresis: int, consecutive: bool, minimum: int) -> list[float]:
    """The rule in words: the first `hysteresis` - 1 overflows are borne, each later one halves. After `window` sound
    steps and one more the scale doubles, and again after every window; then, or after any sound step, it bears anew.
    """
    scale, left, sound, scales = 2.0**power, hysteresis, 0, []
    for letter in TRACE:
        if letter == "x":
            scale, left, sound = (scale, left - 1, 0) if left > 1 else (max(scale / 2, minimum), left, 0)
        else:
            sound += 1
            doubles = sound > 1 and (sound - 1) % window == 0
            scale = scale * 2 if doubles else scale
            left = hysteresis if doubles or consecutive else left
        scales.append(scale)
    return scales


@pytest.mark.parametrize("rule", RULES)
def test_window_hysteresis_and_minimum_are_as_the_json_says(told: dict[str, Any], rule: str) -> None:
    fp16 = {"consecutive_hysteresis": False, "min_loss_scale": 1, "initial_scale_power": 10} | RULES[rule]
    scales = expected(
        fp16["initial_scale_power"],
        fp16["loss_scale_window"],
        fp16["hysteresis"],
        fp16["consecutive_hysteresis"],
        fp16["min_loss_scale"],
    )
    assert told["traces"][rule] == scales
    assert len(set(scales)) >= 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_doubles_the_scale_updates_as_one_that_does_not(told: dict[str, Any], stage: int) -> None:
    """DeepSpeed divides its gradients by the doubled scale, which halves them where nothing is clipped (#8588)."""
    doubled, same = told["doubling"][str(stage)]["3"], told["doubling"][str(stage)]["1000"]
    assert doubled["scale"] == 2 * same["scale"]
    assert doubled["bits"] == same["bits"]


def test_the_minimum_ends_it_on_all_ranks_with_nothing_moved(told: dict[str, Any]) -> None:
    minimum = told["minimum"]
    assert minimum["after"] == minimum["before"]
    assert minimum["before"]["scale"] == 2
    assert len(minimum["messages"]) == 2
    for message in minimum["messages"]:
        assert message.startswith("gradients overflow at the minimum loss scale 2, 3 steps in a row")


def test_a_restored_scale_moves_within_what_the_json_says_now(told: dict[str, Any]) -> None:
    restored = told["restored"]
    left = {"cur_scale": 8, "cur_iter": 7, "last_overflow_iter": 2, "cur_hysteresis": 2, "overflows_in_a_row": 0}
    assert restored["left"] == left
    assert restored["same"] == left | {"window": 6, "minimum": 1}
    assert restored["higher minimum"] == left | {"cur_scale": 16, "window": 1000, "minimum": 16}
    assert restored["less hysteresis"] == left | {"cur_hysteresis": 1, "window": 1000, "minimum": 1}
    anew = {"cur_scale": 1024, "cur_iter": 0, "last_overflow_iter": -1, "cur_hysteresis": 2, "overflows_in_a_row": 0}
    assert restored["from bf16"] == anew


# ----------------------------------------------------------------------------------------------------------- gradients


def test_512_micro_batches_add_up_to_one_big_batch(told: dict[str, Any]) -> None:
    """Errors beside fp32's gradient: sums in fp32 add none to those of one batch, sums in fp16 many times them."""
    off = told["accumulated"]
    for kind in ("512 in fp32", "512 in fp32, stage 2"):
        assert off[kind] < 1.5 * off["one batch"]
    assert off["512 in fp16"] > 4 * off["512 in fp32"]
