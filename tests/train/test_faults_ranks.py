"""One of two ranks dies inside a save: the other ends with it, and the next start ends as if nothing had been."""

from pathlib import Path

import pytest

from nezha_ds.train.checkpoint import damage
from nezha_ds.train.ledger import audit_run
from tests.helpers import faults, runs
from tests.helpers.processes import session, wait_for

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]


def test_one_rank_dies_while_the_other_waits_for_it(undisturbed, tmp_path, embedded):
    """Rank 1 is about to write its moments of step 8, in the background; both may have begun the step after it."""
    run = runs.make(tmp_path, embedded, "train.ledger=true", **runs.BF16)
    env = faults.environment(faults.at("moments", "kill", new=8, rank=1), rank=1)
    done = faults.run_launched(run, world_size=2, env=env)
    assert done.returncode != 0
    wait_for(lambda: not session(done.leader))
    assert not shared_memory(done.port)
    assert not run.checkpoint(8).exists()
    assert not damage(run.checkpoint(4))
    assert "going on from step-00000004" in run.finish(world_size=2)
    assert run.tensors(12) == undisturbed.tensors(12)
    assert not faults.half_named(run.folder)
    proven = audit_run(run.folder, 12)
    assert not proven.faults
    assert (proven.samples, proven.attempts) == (12 * 16, 2)
    assert proven.repeated in (4, 5)


def shared_memory(port: int) -> list[Path]:
    """What a run has in /dev/shm under its port."""
    return [*Path("/dev/shm").glob(f"*_{port}_*")]
