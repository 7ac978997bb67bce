"""fp16 and bf16 steps with our LAMB under DeepSpeed: they follow fp32, and a loss scale that is too high mends itself.

On the CPU the whole road is real but for one answer: DeepSpeed says that a CPU has no fp16, and torch computes it.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.helpers.ranks import environment, free_port

REPOSITORY = Path(__file__).parents[2]
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.ranks),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
            pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
        ],
    ),
]


def learn(precision, device, folder):
    """One rank, as a launcher would start it; where there is a GPU too, DeepSpeed is told which."""
    alone = {"MASTER_PORT": str(free_port()), "DS_ACCELERATOR": device, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.half_precision", precision, device, str(folder)],
        env={**environment(), **alone},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def extensions_are_warm(request):
    """What DeepSpeed compiles on a CPU, once for the whole suite; a GPU needs none of it."""
    if request.node.callspec.params["device"] == "cpu":
        request.getfixturevalue("warm")


@pytest.mark.usefixtures("extensions_are_warm")
@pytest.mark.parametrize("device", DEVICES)
def test_fp16_skips_what_overflows_and_then_follows_fp32(device, tmp_path):
    result = learn("fp16", device, tmp_path)
    skipped = result["made"].index(True)
    assert skipped >= 2, "the scale was to begin too high"
    assert result["scales"][:skipped] == [2.0 ** (result["scale_power"] - 1 - number) for number in range(skipped)]
    assert result["moved"] == result["made"], "a skipped step moves nothing, an update something"
    assert any(late == 2 * early for early, late in pairwise(result["scales"])), "sound steps did not raise it"
    follows_fp32(result)


@pytest.mark.usefixtures("extensions_are_warm")
@pytest.mark.parametrize("device", DEVICES)
def test_bf16_follows_fp32(device, tmp_path):
    if device == "cuda" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bf16")
    result = learn("bf16", device, tmp_path)
    assert all(result["made"])
    follows_fp32(result)


def follows_fp32(result):
    """The same losses to 2%, from ln 331 down by a fifth or more."""
    assert result["losses"] == pytest.approx(result["in_fp32"], rel=0.02)
    assert result["losses"][-1] < 0.8 * result["losses"][0]
