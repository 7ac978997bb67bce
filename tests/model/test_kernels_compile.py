"""The kernels are more than what Triton's interpreter accepts: ptxas makes machine code of them for A100, A10 and H100.

No GPU is needed for that. What it would refuse at a launch, too much shared memory, shows here as well.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.compile_kernels import CASES, SHARED

REPOSITORY = Path(__file__).parents[2]
KERNELS = {"_forward", "_backward_queries", "_backward_keys"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What each launch takes, from a process in which nothing is interpreted and no cache is warm."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.compile_kernels"],
        cwd=REPOSITORY,
        env=clean
        | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_every_case(compiled):
    assert len(compiled) == len(KERNELS) * len(CASES)
    assert {row["kernel"] for row in compiled} == KERNELS


def test_none_takes_more_shared_memory_than_a_block_may_have(compiled):
    for row in compiled:
        assert row["shared"] <= SHARED[row["capability"]], row


def test_what_is_spilled_stays_small_where_it_matters(compiled):
    """Registers that do not fit go to memory: bytes a thread, for heads of 64 on an H100."""
    spilled = {row["kernel"]: row["stack"] for row in compiled if (row["capability"], row["head_size"]) == (90, 64)}
    assert spilled.keys() == KERNELS
    assert max(spilled.values()) <= 128, spilled
