"""Saving while training goes on: what is written, when, what waits for it, and what a failure does; in one process."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nezha_ds.errors import DataError, DivergedError, Exit, LaunchError
from nezha_ds.observe.events import Save, Snapshot
from nezha_ds.train import saver as module
from nezha_ds.train.checkpoint import FileEntry, damage, find_sound
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import TrainSettings
from nezha_ds.train.saver import SaveHungError, Saver
from nezha_ds.world import World
from tests.train import checkpoints
from tests.train.together import on_ranks

FULL = OSError(28, "No space left on device")


class Events(list[Any]):
    """What a saver told."""

    def saves(self) -> list[tuple[int, bool]]:
        return [(event.step, event.ok) for event in self if isinstance(event, Save)]


def open_saver(root: Path, engine: Any, ranks: Ranks | None = None, **settings: Any) -> tuple[Saver, Events]:
    told = Events()
    made = Saver(
        root=root,
        engine=engine,
        ranks=ranks or Ranks(World()),
        settings=TrainSettings(**settings),
        state_at=checkpoints.state,
        files={"vocab.txt": b"[PAD]\n"},
        tell=told.append,
    )
    return made, told


@pytest.fixture
def gate(monkeypatch):
    """Nothing is written before it is opened."""
    opened, write = threading.Event(), module.write

    def gated(snapshot, folder):
        opened.wait()
        return write(snapshot, folder)

    monkeypatch.setattr(module, "write", gated)
    yield opened
    opened.set()


def failing(monkeypatch, fails: Callable[[Path, int], bool]) -> None:
    """Let the disk be full for the n-th write of any rank that `fails` tells."""
    write, calls = module.write, iter(range(1000))

    def full(snapshot, folder):
        if fails(folder, next(calls)):
            (folder / "half").parent.mkdir(parents=True, exist_ok=True)
            (folder / "half").write_bytes(b"half")
            raise FULL
        return write(snapshot, folder)

    monkeypatch.setattr(module, "write", full)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------ what is written


def test_in_the_background_and_in_the_loop_the_same_bytes_are_written(tmp_path):
    for name, in_background in (("behind", True), ("before", False)):
        saver, told = open_saver(tmp_path / name, checkpoints.engine(1), async_save=in_background)
        saver(4)
        assert in_background or damage(tmp_path / name / "step-00000004") == ""
        saver.finish()
        assert told.saves() == [(4, True)]
        assert told[-1].bytes == sum(map(len, contents(tmp_path / name / "step-00000004").values())) - len(
            (tmp_path / name / "step-00000004" / "manifest.json").read_bytes()
        )
    assert contents(tmp_path / "behind" / "step-00000004") == contents(tmp_path / "before" / "step-00000004")


def test_what_is_written_is_what_was_there_when_the_step_ended(tmp_path, gate):
    engine = checkpoints.engine(1)
    saver, told = open_saver(tmp_path / "run", engine)
    saver(4)
    for parameter in engine.module.parameters():
        parameter.data.zero_()
    for moment in engine.values.values():
        for values in moment.values():
            values.zero_()
    saver.poll()
    assert [type(event) for event in told] == [Snapshot]
    assert not (tmp_path / "run").exists()
    gate.set()
    saver.finish()
    other, _ = open_saver(tmp_path / "other", checkpoints.engine(1))
    other(4)
    other.finish()
    assert contents(tmp_path / "run" / "step-00000004") == contents(tmp_path / "other" / "step-00000004")


def test_a_save_waits_for_the_one_before(tmp_path, gate):
    saver, told = open_saver(tmp_path, checkpoints.engine(1))
    seen = []
    saver._state_at = lambda step: seen.append(told.saves()) or checkpoints.state(step)
    saver(4)
    threading.Timer(0.1, gate.set).start()
    saver(8)
    saver.finish()
    assert seen == [[], [(4, True)]]
    assert told.saves() == [(4, True), (8, True)]


def test_polls_alone_bring_it_to_its_end(tmp_path):
    saver, told = open_saver(tmp_path, checkpoints.engine(1))
    saver(4)
    while not told.saves():
        saver.poll()
    assert damage(tmp_path / "step-00000004") == ""


def test_old_ones_go_behind_a_new_one_that_was_read_back(tmp_path, monkeypatch):
    saver, told = open_saver(tmp_path, checkpoints.engine(1), keep_last=1, keep_every=8)
    for step in (4, 8, 12):
        saver(step)
    saver.finish()
    assert names(tmp_path) == ["step-00000008", "step-00000012"]
    commit = module.commit

    def torn(temporary, final, entries):
        size = commit(temporary, final, entries)
        checkpoints.flip_a_bit(final / "model.safetensors")
        return size

    monkeypatch.setattr(module, "commit", torn)
    saver(20)
    with pytest.raises(LaunchError, match=r"step-00000020/model\.safetensors is damaged as soon as it is read back"):
        saver.finish()
    assert {"step-00000008", "step-00000012"} <= set(names(tmp_path))
    assert told[-1].damaged == 1
    assert told.saves()[-1] == (20, False)


# -------------------------------------------------------------------------------------------------------- what may fail


def test_one_failure_is_told_and_the_next_save_tries_again(tmp_path, monkeypatch, caplog):
    failing(monkeypatch, lambda folder, call: call == 1)
    saver, told = open_saver(tmp_path, checkpoints.engine(1))
    for step in (4, 8, 12):
        saver(step)
    saver.finish()
    assert told.saves() == [(4, True), (8, False), (12, True)]
    assert names(tmp_path) == ["step-00000004", "step-00000012"]
    assert "the checkpoint of step 8 failed: cannot write" in caplog.text
    assert "No space left on device); free space on its disk" in caplog.text
    assert "Training goes on" in caplog.text


def test_two_failures_in_a_row_end_the_run_with_the_old_one_whole(tmp_path, monkeypatch):
    failing(monkeypatch, lambda folder, call: call >= 1)
    saver, told = open_saver(tmp_path, checkpoints.engine(1))
    saver(4)
    saver(8)
    saver(12)
    with pytest.raises(LaunchError, match=r"two checkpoints in a row failed.*No space left on device.*free space"):
        saver(16)
    assert told.saves() == [(4, True), (8, False), (12, False)]
    assert names(tmp_path) == ["step-00000004"]
    assert find_sound(tmp_path).folder == tmp_path / "step-00000004"


def test_the_last_save_must_not_fail(tmp_path, monkeypatch):
    failing(monkeypatch, lambda folder, call: call == 1)
    saver, _ = open_saver(tmp_path, checkpoints.engine(1))
    with pytest.raises(LaunchError, match=r"the last checkpoint failed: cannot write.*No space left"), saver:
        saver(4)
        saver(8)
    assert names(tmp_path) == ["step-00000004"]


def test_a_save_that_hangs_ends_the_run(tmp_path, gate):
    saver, told = open_saver(tmp_path, checkpoints.engine(1), save_seconds=0.01)
    expected = r"step 4 is not written after train\.save_seconds = 0\.01 \(rank 0 is"
    with pytest.raises(SaveHungError, match=expected) as hung:
        saver(4)
        saver.finish()
    assert hung.value.exit_code == Exit.HUNG
    assert told.saves() == [(4, False)]


def test_a_run_that_diverged_finishes_the_save_under_way(tmp_path, gate):
    saver, told = open_saver(tmp_path, checkpoints.engine(1))
    with pytest.raises(DivergedError), saver:
        saver(4)
        gate.set()
        raise DivergedError("NaN")
    assert told.saves() == [(4, True)]


# ----------------------------------------------------------------------------------------------------------- many ranks


def ends_of(root: Path, steps: tuple[int, ...], size: int, **settings: Any) -> list[tuple[str, Any]]:
    """On every rank: how a run with saves at these steps ended, and what was told."""

    def run(ranks: Ranks) -> tuple[str, Any]:
        saver, told = open_saver(root, checkpoints.engine(1, ranks.world), ranks, **settings)
        try:
            with saver:
                for step in steps:
                    saver(step)
        except LaunchError as error:
            return str(error), told.saves()
        return "", told.saves()

    return on_ranks(size, run)


def test_what_fails_on_one_rank_fails_on_all(tmp_path, monkeypatch):
    write = module.write

    def full_on_one(snapshot, folder):
        if snapshot.weights is None and next(calls) % 2:
            raise FULL
        return write(snapshot, folder)

    calls = iter(range(1000))
    monkeypatch.setattr(module, "write", full_on_one)
    ends = ends_of(tmp_path, (4, 8), size=3)
    assert len(set(map(repr, ends))) == 1
    assert "No space left on device" in ends[0][0]
    assert ends[0][1] == [(4, False), (8, False)]
    assert names(tmp_path) == []


def test_a_rank_with_a_disk_of_its_own_is_named(tmp_path, monkeypatch):
    """Rank 1 believes that it wrote; rank 0 does not see the file."""
    write = module.write

    def elsewhere(snapshot, folder):
        if snapshot.weights is not None:
            return write(snapshot, folder)
        own = tmp_path / "elsewhere"
        own.mkdir(exist_ok=True)
        (own / "moments-00001-of-00002.safetensors").write_bytes(b"mine")
        return {"moments-00001-of-00002.safetensors": FileEntry(bytes=4, sha256="")}

    monkeypatch.setattr(module, "write", elsewhere)
    (first, _), (second, _) = ends_of(tmp_path / "root", (4,), size=2)
    assert first == second
    assert "moments-00001-of-00002.safetensors, which another rank wrote; let run.folder lie where every node" in first


def test_an_error_of_one_rank_alone_does_not_wait_for_the_others(tmp_path):
    def run(ranks: Ranks) -> str:
        saver, _ = open_saver(tmp_path, checkpoints.engine(1, ranks.world), ranks)
        try:
            with saver:
                saver(4)
                if ranks.world.rank == 1:
                    raise DataError("a shard is missing on this node")
                return "fell behind"
        except (DataError, threading.BrokenBarrierError) as error:
            # The launcher ends the others; here their meeting is over.
            ranks._meeting.barrier.abort()  # type: ignore[attr-defined]
            return str(error)

    assert "a shard is missing on this node" in on_ranks(2, run)
