"""One run that suffers everything that can happen to a save, and ends with the bytes of one that suffered nothing.

Each attempt gets one step further and then its fault, at the very operation of the save that it names: twelve starts
of one rank. What each left behind is looked at between them.
"""

import os
import shutil
from dataclasses import dataclass

import pytest

from nezha_ds.errors import Exit
from nezha_ds.train.checkpoint import damage
from nezha_ds.train.ledger import audit_run
from tests.helpers import faults, ranks, runs

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]

SETTINGS = ("train.steps=13", "train.save_every=1", "train.keep_last=3", "train.eval_samples=0", "train.ledger=true")
KILLED = -9
FAULTS = {
    # In the order of the save's step: the fault, the exit code, and the newest whole checkpoint afterwards.
    "begin": (faults.at("begin", "kill", new=1), KILLED, 0),
    "moments": (faults.at("moments", "kill", new=2), KILLED, 1),
    "weights": (faults.at("weights", "kill", new=3), KILLED, 2),
    "state": (faults.at("state", "kill", new=4), KILLED, 3),
    "manifest": (faults.at("manifest", "kill", new=5), KILLED, 4),
    "rename": (faults.at("rename", "kill", new=6), KILLED, 5),
    "prune": (faults.at("prune", "kill", new=7, old=4), KILLED, 7),
    "removal": (faults.at("removal", "kill", new=8, old=5), KILLED, 8),
    "no room for the moments": (faults.at("begin", "limit", 1000, new=9), Exit.REFUSED, 8),
    "no room for the manifest": (
        faults.at("rename", "go_on", new=9) + faults.at("state", "limit", 1000, new=10),
        Exit.REFUSED,
        9,
    ),
    "read-only": ([], Exit.REFUSED, 10),
}


@dataclass
class Outcome:
    """What an attempt came to."""

    code: int
    printed: str
    newest: int
    damaged: list[str]
    """What is wrong with checkpoints that have their name."""
    half_named: list[str]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, embedded, extensions):
    """Thirteen steps that nobody disturbed."""
    run = runs.make(tmp_path_factory.mktemp("alone"), embedded, *SETTINGS, **runs.BF16)
    run.finish()
    return run


@pytest.fixture(scope="module")
def suffering(tmp_path_factory, embedded, extensions):
    """The run that suffers, and what each fault came to."""
    run = runs.make(tmp_path_factory.mktemp("suffering"), embedded, *SETTINGS, **runs.BF16)
    checkpoints = run.folder / "checkpoints"
    outcomes = {}
    for name, (own, _, _) in FAULTS.items():
        readonly = name == "read-only"
        own = own or faults.at("begin", "mode", str(checkpoints), 0o555, new=11)
        done = faults.run_alone(runs.SCRIPT, *run.arguments, env=faults.environment(own))
        if readonly:
            checkpoints.chmod(0o755)
        outcomes[name] = look(run, done)
    return run, outcomes


def look(run: runs.Run, done) -> Outcome:
    found = sorted((run.folder / "checkpoints").glob("step-*"))
    return Outcome(
        code=done.returncode,
        printed=done.stdout + done.stderr,
        newest=max((int(path.name[5:]) for path in found), default=0),
        damaged=[told for path in found if (told := damage(path))],
        half_named=faults.half_named(run.folder / "checkpoints"),
    )


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_whole_checkpoints_only(suffering, name):
    outcome, (_, code, newest) = suffering[1][name], FAULTS[name]
    assert outcome.code == code, outcome.printed[-3000:]
    assert outcome.newest == newest
    assert not outcome.damaged
    if code == Exit.REFUSED:
        assert "Traceback" not in outcome.printed
        last = outcome.printed.splitlines()[-1]
        assert last.startswith("nezha-ds: ")
        assert "cannot write" in last
        assert "free space on its disk, or choose another folder" in last
        assert not outcome.half_named
    elif name != "begin":
        # What is half-done is there, under a name that nobody takes for a checkpoint.
        assert bool(outcome.half_named) == (name != "prune")


def test_then_it_ends_as_if_nothing_had_been(suffering, alone):
    """Two damaged checkpoints, dates that lie, a clock that jumps and a log without room on the last way, too."""
    run, _ = suffering
    (run.checkpoint(10) / "manifest.json").write_bytes((run.checkpoint(10) / "manifest.json").read_bytes()[:100])
    (run.checkpoint(9) / "model.safetensors").write_bytes(b"")
    for step, when in ((8, 3e9), (9, 0), (10, 1e9)):
        os.utime(run.checkpoint(step), (when, when))
    # Between two saves, so that nothing but the log and the ledger is refused.
    no_room = [*faults.at("rename", "limit", 1, new=12), *faults.at("begin", "unlimit", new=13)]
    env = faults.environment(no_room, clock="jumping")
    done = faults.run_alone(runs.SCRIPT, *run.arguments, "--set", f"exporter.port={ranks.free_port()}", env=env)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    assert "step-00000010 has no readable manifest.json; trying the one before it" in printed
    assert "step-00000009/model.safetensors is missing or cut short; trying the one before it" in printed
    assert "going on from step-00000008" in printed
    assert "metrics.jsonl cannot be written" in printed
    assert run.tensors(13) == alone.tensors(13)
    assert not faults.half_named(run.folder)
    assert {step: alone.losses()[step] for step in run.losses()} == run.losses()


def test_no_sample_was_lost_or_repeated(suffering, alone):
    proven = audit_run(alone.folder, 13)
    assert (proven.faults, proven.attempts, proven.repeated) == ((), 1, 0)
    proven = audit_run(suffering[0].folder, 13)
    assert not proven.faults
    assert (proven.steps, proven.samples, proven.attempts) == (13, 13 * 16, len(FAULTS) + 1)
    assert proven.repeated >= len(FAULTS)


def test_the_proof_can_fail(alone, tmp_path):
    folder = shutil.copytree(alone.folder, tmp_path / "run")
    (path,) = folder.glob("ledger/*/*.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "noted by nobody" in audit_run(folder, 13).faults[0]
