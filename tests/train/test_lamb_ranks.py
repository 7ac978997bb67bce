"""LAMB on any number of ranks under every ZeRO stage is the same as in one process, and the check can fail."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import ranks
from tests.train.scripts.lamb_exact import CASES, VARIANTS

SCRIPT = "tests/train/scripts/lamb_under_zero.py"

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]

EXACT = [
    pytest.param(world_size, f"{case}, {variant}", id=f"{world_size} ranks, {case}, {variant}")
    for world_size, cases in CASES.items()
    for case in cases
    for variant in VARIANTS
]


@pytest.fixture(scope="module")
def found(tmp_path_factory, extensions) -> dict[int, dict[str, Any]]:
    """What each number of ranks found."""
    folder = tmp_path_factory.mktemp("lamb")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder],
        env=ranks.environment(extensions),
        cwd=ranks.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return {world_size: json.loads((folder / f"{world_size}.json").read_text()) for world_size in CASES}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_ranks_equal_one_process(found, stage):
    """A NEZHA's own gradients, the largest difference of any weight after ten steps."""
    assert found[2]["nezha"][f"stage {stage}"] < 1e-6


def test_a_lamb_that_takes_partitions_for_tensors_is_caught(found):
    """Ten steps at lr 0.01 move weights by about 0.1 of their size: a wrong ratio shows a thousandfold."""
    assert found[2]["nezha"]["stage 1 unaware"] > 1e-3


@pytest.mark.parametrize(("world_size", "case"), EXACT)
def test_weights_and_ratios_are_those_of_one_process(found, world_size, case):
    """Gradients that are known to the last bit: what differs is the order of sums. All six trained tensors move."""
    result = found[world_size]["exact"][case]
    assert result["weights"] < 1e-6
    assert result["ratios"] < 1e-6
    assert result["moved"] > 1e-3
    assert result["trained"] == 6


@pytest.mark.parametrize(("world_size", "case"), EXACT)
def test_construction_moves_nothing_and_counts_nothing(found, world_size, case):
    """DeepSpeed's wrapper without ZeRO makes a step as it is made; bf16 without ZeRO is under it."""
    result = found[world_size]["exact"][case]
    assert (result["moved before"], result["updates"]) == (0.0, 0)
    assert ("Unfused" in result["wrapper"]) == case.startswith("bf16 stage 0")


def test_partitions_do_cut_tensors(found):
    """Otherwise the ranks would have tested nothing but whole tensors."""
    assert all(
        found[size]["exact"][f"bf16 stage 1 accumulating fp32, {name}"]["cut"]
        for size in (2, 3, 4)
        for name in VARIANTS
    )
