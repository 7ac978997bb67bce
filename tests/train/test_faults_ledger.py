"""The ledger proves what it should, and nothing that is not so: attempts killed anywhere, on any number of ranks."""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.batch import Batch
from nezha_ds.data.order import Numbers, Order, rank_samples
from nezha_ds.errors import DataError, LaunchError
from nezha_ds.train.ledger import Ledger, audit, find_attempts, open_ledger
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World

BATCH, MICRO, STEPS = 12, 2, 8
ORDER = Order([7, 9, 4], seed=3)
"""Twenty samples: an epoch ends in the middle of a batch."""


def order(step: int) -> Numbers:
    return ORDER.sample(np.arange(BATCH, dtype=np.int64) + step * BATCH)


def batches(step: int, rank: int, world_size: int) -> list[Batch]:
    """What the loader would give a rank; only its ids matter here."""
    numbers = rank_samples(step * BATCH, BATCH, World(rank=rank, world_size=world_size))
    nothing = torch.zeros(MICRO, 1)
    return [
        Batch(nothing, nothing, nothing, nothing, nothing, torch.tensor(part))
        for part in ORDER.sample(numbers).reshape(-1, MICRO)
    ]


def attempt(root: Path, first: int, last: int, world_size: int, *, behind: int = 0, torn: int = 0) -> None:
    """Steps first .. last - 1 noted by every rank; the last rank is some steps behind, and ends in a torn line."""
    number = len(find_attempts(root)) + 1
    folder = root / f"attempt-{number:04}-step-{first:08}-ranks-{world_size}"
    folder.mkdir(parents=True)
    for rank in range(world_size):
        path = folder / f"rank-{rank:05}.jsonl"
        own = last - (behind if rank == world_size - 1 else 0)
        ledger = Ledger(path)
        for step in range(first, own):
            ledger.note(step, batches(step, rank, world_size))
        ledger.close()
        if torn and rank == world_size - 1:
            with path.open("ab") as file:
                file.write(b'{"step":%d,"samples":[1,2' % own)


@given(
    st.lists(
        st.tuples(
            st.integers(0, STEPS), st.integers(0, 3), st.sampled_from([1, 2, 3, 6]), st.booleans(), st.booleans()
        ),
        max_size=5,
    )
)
def test_a_history_of_kills_is_proven(tmp_path_factory, kills):
    """Each attempt does a few steps from a checkpoint, is killed a few beyond it, and another world size goes on."""
    root, first, repeated = tmp_path_factory.mktemp("ledger"), 0, 0
    for saved, beyond, world_size, behind, torn in kills:
        saved = max(first, saved)
        attempt(root, first, saved + beyond, world_size, behind=behind and beyond > 0, torn=torn)
        # Of one rank nobody noted the step that it is behind.
        repeated += beyond - (behind and beyond > 0 and world_size == 1)
        first = saved
    attempt(root, first, STEPS, 2)
    proven = audit(root, STEPS, order)
    assert not proven.faults
    assert (proven.steps, proven.samples, proven.attempts) == (STEPS, STEPS * BATCH, len(kills) + 1)
    assert proven.repeated == repeated


def test_falling_back_to_an_older_checkpoint_undoes_both_attempts(tmp_path):
    attempt(tmp_path, 0, 6, 2)
    attempt(tmp_path, 4, 8, 3)
    attempt(tmp_path, 2, 8, 1)  # both newer checkpoints were damaged
    assert not audit(tmp_path, 8, order).faults
    assert audit(tmp_path, 8, order).repeated == 4 + 4


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def lines(path: Path, keep: slice) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[keep]))


def test_what_is_not_so_is_not_proven(tmp_path):
    """Every kind of loss by itself, and that it is named."""

    def told(name: str, harm, done: int = 4) -> str:
        root = tmp_path / name
        attempt(root, 0, 3, 2)
        attempt(root, 2, 4, 2)
        harm(root / "attempt-0001-step-00000000-ranks-2" / "rank-00001.jsonl")
        return "; ".join(audit(root, done, order).faults)

    mine, next_one = order(0)[6:8].tolist()
    theirs = order(0)[0]
    absent = np.setdiff1d(np.arange(20), order(0))[0]
    pair = f"[{mine},{next_one},"
    assert told("nothing", lambda path: None) == ""
    assert f"step 0: lost [{mine}], repeated [{theirs}]" in told(
        "repeated", lambda path: changed(path, pair, f"[{theirs},{next_one},")
    )
    assert f"lost [{mine}], not its own [{absent}]" in told(
        "strange", lambda path: changed(path, pair, f"[{absent},{next_one},")
    )
    assert told("lost", lambda path: changed(path, pair, f"[{next_one},")).endswith(f"step 0: lost [{mine}]")
    assert "step 1: rank 1 noted nothing" in told("short", lambda path: lines(path, slice(0, 1)))
    assert "step 0: rank 1 noted nothing" in told("no file", Path.unlink)
    # The third line is of a step that was done again: it may be missing, but not be another.
    assert told("in vain", lambda path: lines(path, slice(0, 2))) == ""
    repeat = ",".join(map(str, order(2)[6:8]))
    assert "step 2" in told("another repeat", lambda path: changed(path, f"[{repeat},", f"[{repeat[::-1]},"))
    assert "steps 4 to 5 were noted by nobody" in told("beyond", lambda path: None, done=6)


def test_a_gap_between_attempts_is_a_loss(tmp_path):
    attempt(tmp_path, 0, 3, 1)
    attempt(tmp_path, 4, 6, 1)
    assert audit(tmp_path, 6, order).faults == (
        "attempt-0001-step-00000000-ranks-1: steps 3 to 3 were noted by nobody",
    )
    attempt(tmp_path / "late", 2, 6, 1)
    assert "steps 0 to 1 were noted by nobody" in audit(tmp_path / "late", 6, order).faults[0]
    assert "holds no attempt" in audit(tmp_path / "none", 6, order).faults[0]


def test_a_line_out_of_turn_is_no_ledger(tmp_path):
    attempt(tmp_path, 0, 4, 1)
    path = tmp_path / "attempt-0001-step-00000000-ranks-1" / "rank-00000.jsonl"
    for harm in (lambda: lines(path, slice(1, None)), lambda: path.write_text('{"step":0}\n')):
        harm()
        with pytest.raises(DataError, match=r"rank-00000\.jsonl does not tell of step 0 where it should"):
            audit(tmp_path, 4, order)


def test_lines_that_a_full_disk_refuses_follow_later(tmp_path, caplog):
    ledger = open_ledger(tmp_path, 0, Ranks(World()))
    ledger.note(0, batches(0, 0, 1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
    try:
        for step in (1, 2):
            ledger.note(step, batches(step, 0, 1))
        assert ledger.path is not None
        assert ledger.path.read_bytes().count(b"\n") == 1
        assert ledger.path.read_bytes().endswith(b"\n")  # nothing half-written
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [record.message for record in caplog.records] == [
        f"{ledger.path} cannot be written ({os.strerror(errno.EFBIG)}); its lines wait in memory"
    ]
    ledger.note(3, batches(3, 0, 1))
    ledger.close()
    assert not audit(tmp_path, 4, order).faults


def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(tmp_path):
    (tmp_path / "ledger").write_text("a file")
    with pytest.raises(LaunchError, match="cannot write"):
        open_ledger(tmp_path / "ledger", 0, Ranks(World()))


def test_without_a_file_nothing_is_noted():
    Ledger().note(0, batches(0, 0, 1))
    Ledger().close()
