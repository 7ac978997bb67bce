"""Stopped on four ranks under ZeRO-1, gone on with one, two or three under ZeRO 0, 2 and 1: the same samples with the
same masks, and the losses of the run that nobody stopped.
"""

import json
import shutil
from pathlib import Path

import pytest

from nezha_ds.train.ledger import audit_run
from tests.helpers import ranks, runs

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]

SCRIPT = "tests/train/scripts/told_pretrain.py"
STILL = (
    "model.hidden_dropout_prob=0.0",
    "model.attention_probs_dropout_prob=0.0",
    "train.steps=8",
    "train.eval_samples=0",
    "train.ledger=true",
)
BATCH = {"train_batch_size": 24, "train_micro_batch_size_per_gpu": 2}


def train(run: runs.Run, told: Path, world_size: int, attempt: str, patch: pytest.MonkeyPatch) -> str:
    """To the end, with what each rank trained on below `told`."""
    patch.setenv("FOLDER", str(told))
    patch.setenv("ATTEMPT", attempt)
    return ranks.run_well(ranks.our_command(SCRIPT, *run.arguments, ranks=world_size))


def samples(told: Path, attempt: str, world_size: int) -> list[dict[str, str]]:
    """Of each step, the number and the hash of each sample on any rank; none on two."""
    lines = [(told / f"{attempt}-{rank}.jsonl").read_text().splitlines() for rank in range(world_size)]
    steps = []
    for parts in zip(*lines, strict=True):
        step: dict[str, str] = {}
        for part in map(json.loads, parts):
            assert not step.keys() & part.keys()
            step |= part
        steps.append(step)
    return steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, embedded, extensions):
    """Eight steps on four ranks, with checkpoints at 4 and 8, and what each of them trained on."""
    folder = tmp_path_factory.mktemp("elastic")
    run = runs.make(folder, embedded, *STILL, **BATCH)
    with pytest.MonkeyPatch.context() as patch:
        train(run, folder, 4, "four", patch)
    return run, samples(folder, "four", 4)


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 2), (3, 1)])
def test_other_ranks_and_another_stage_go_on(undisturbed, tmp_path, embedded, world_size, stage, monkeypatch):
    whole, expected = undisturbed
    run = runs.make(tmp_path, embedded, *STILL, **BATCH, zero_optimization={"stage": stage})
    shutil.copytree(whole.folder, run.folder)
    shutil.rmtree(run.checkpoint(8))
    assert "going on from step-00000004" in train(run, tmp_path, world_size, "other", monkeypatch)
    steps = samples(tmp_path, "other", world_size)
    assert steps == expected[4:]
    assert all(len(step) == BATCH["train_batch_size"] for step in steps)
    assert [run.losses()[step] for step in range(5, 9)] == pytest.approx(
        [whole.losses()[step] for step in range(5, 9)], abs=2e-5
    )
    proven = audit_run(run.folder, 8)
    assert (proven.faults, proven.attempts, proven.repeated) == ((), 2, 4)
