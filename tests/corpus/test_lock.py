"""Two preparations in one folder: the second is refused by name, and the first does not notice."""

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest

from nezha_ds.corpus.lock import LOCK, alone_in
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.errors import LaunchError
from tests.helpers import preparation, processes


def test_of_two_at_the_same_moment_one_is_refused(tmp_path: Path) -> None:
    text, out, gate = preparation.statutes(tmp_path / "a.txt", 300), tmp_path / "out", tmp_path / "gate"
    arguments = (text, "--workers", 2)
    both = [preparation.start(*arguments, "--out", out, OPEN_TASKS=0, GATE=gate) for _ in range(2)]
    processes.wait_for(lambda: [process for process in both if process.poll() is not None])
    gate.touch()  # for the winner to go on
    ended = sorted((*preparation.finish(process), process.pid) for process in both)
    (won, _, winner), (lost, told, _) = ended
    assert (won, lost) == (0, 2)
    assert told == (
        f"nezha-ds: {out} is being prepared by another process (process {winner} on {socket.gethostname()}); "
        "wait for it or end it, or choose another folder\n"
    )
    assert preparation.run(*arguments, "--out", tmp_path / "alone")[0] == 0
    assert preparation.contents(out) == preparation.contents(tmp_path / "alone")


def test_it_is_gone_with_its_holder(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(LaunchError, match="is being prepared by another process"), alone_in(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()
    (tmp_path / LOCK).write_text("process 1 on a host that lost its power")
    with alone_in(tmp_path):
        pass


def test_what_is_complete_may_be_found_so_by_many(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("甲文。\n\n乙文。")
    settings = PrepareSettings(inputs=(str(tmp_path / "a.txt"),), out=tmp_path / "out", workers=1)
    manifest = prepare(settings, progress=False)
    with alone_in(settings.out):
        assert prepare(settings, progress=False) == manifest


def test_a_file_that_its_holder_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened while the other still held it."""
    held = []

    def remove_first(file: object, operation: int) -> None:
        if not held:
            (tmp_path / LOCK).unlink()
        held.append(operation)
        flock(file, operation)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", remove_first)
    with alone_in(tmp_path):
        assert (tmp_path / LOCK).read_text()
    assert len(held) == 2


def test_without_locks_it_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone_in(tmp_path):
        pass
    told = f"warning: no lock on {tmp_path} (Function not implemented); start no second preparation in it\n"
    assert capsys.readouterr().err == told
