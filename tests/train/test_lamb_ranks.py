"""LAMB is the same optimizer on two ranks under every ZeRO stage as in one process, and the check can fail."""

import json

import pytest

from tests.helpers import ranks

SCRIPT = "tests/train/scripts/lamb_under_zero.py"

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]


@pytest.fixture(scope="module")
def differences(tmp_path_factory, extensions):
    """The largest difference of any weight from one process after ten steps, by ZeRO stage."""
    folder = tmp_path_factory.mktemp("lamb")
    ranks.run_well(SCRIPT, str(folder), ranks=2)
    return json.loads((folder / "differences.json").read_text())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_ranks_equal_one_process(differences, stage):
    assert differences[f"stage {stage}"] < 1e-6


def test_a_lamb_that_takes_partitions_for_tensors_is_caught(differences):
    """Ten steps at lr 0.01 move weights by about 0.1 of their size: a wrong ratio shows a thousandfold."""
    assert differences["stage 1 unaware"] > 1e-3
