"""Kill it, start it again: what comes out is what would have come out. Real ranks, real kill -9."""

import shutil
import signal
from pathlib import Path

import pytest

from nezha_ds.errors import Exit
from tests.helpers import runs
from tests.helpers.runs import BF16

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]


@pytest.mark.timing
def test_two_n_steps_equal_n_kill_n(undisturbed, tmp_path, embedded):
    run = runs.make(tmp_path, embedded, **BF16)
    launcher = run.start(world_size=2, last_step=10)
    run.wait_for_step(9, launcher)  # before the save of step 8 that of step 4 was waited for
    assert not shared_memory(launcher)
    runs.kill_all(launcher)
    assert not run.checkpoint(12).exists()
    printed = run.finish(world_size=2)
    assert "going on from step-" in printed
    assert run.tensors(12) == undisturbed.tensors(12)
    assert run.losses() == undisturbed.losses()


@pytest.mark.timing
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_on_all(undisturbed, tmp_path, embedded, number):
    run = runs.make(tmp_path, embedded, **BF16)
    ranks = run.start_ranks(world_size=2, last_step=6)
    run.wait_for_step(2, ranks[0])
    ranks[1].send_signal(number)
    run.open_gate()
    printed = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [Exit.STOPPED] * 2, printed
    stopped = max(run.losses())
    assert run.checkpoint(stopped).exists()
    assert stopped <= 7  # at the end of the step that it was at, the last of which was behind the gate
    run.finish(world_size=2)
    assert run.tensors(12) == undisturbed.tensors(12)


def test_a_damaged_checkpoint_is_passed_over_aloud(undisturbed, tmp_path, embedded):
    run = runs.make(tmp_path, embedded, **BF16)
    shutil.copytree(undisturbed.folder, run.folder)
    shutil.rmtree(run.checkpoint(12))
    flip_a_bit(run.checkpoint(8) / "model.safetensors")
    printed = run.finish(world_size=2)
    assert "step-00000008/model.safetensors is damaged; trying the one before it" in printed
    assert "going on from step-00000004" in printed
    assert run.tensors(12) == undisturbed.tensors(12)


def test_when_no_checkpoint_verifies_it_does_not_start_over(undisturbed, tmp_path, embedded):
    run = runs.make(tmp_path, embedded, **BF16)
    shutil.copytree(undisturbed.folder, run.folder)
    for step, name in ((4, "moments-00001-of-00002.safetensors"), (8, "manifest.json"), (12, "state.json")):
        (run.checkpoint(step) / name).unlink()
    done = run.attempt()
    assert done.returncode == 2
    assert "no checkpoint in" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_run_is_left_alone(undisturbed):
    before = undisturbed.tensors(12)
    assert "is done: step 12 of 12" in undisturbed.finish(world_size=2)
    assert undisturbed.tensors(12) == before


@pytest.mark.parametrize(
    ("setting", "named"),
    [("train.seed=2", "train.seed"), ("model.hidden_size=64", "[model]")],
)
def test_a_checkpoint_of_another_run_is_refused(undisturbed, tmp_path, embedded, setting, named):
    run = runs.make(tmp_path, embedded, setting, **BF16)
    shutil.copytree(undisturbed.folder, run.folder)
    done = run.attempt()
    assert done.returncode == 2
    assert f"was trained with another {named}" in done.stderr
    assert "Traceback" not in done.stderr


def shared_memory(launcher):
    """What a run has in /dev/shm under its port, where it would stay after kill -9."""
    port = launcher.args[launcher.args.index("--master_port") + 1]
    return [*Path("/dev/shm").glob(f"*_{port}_*")]


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
