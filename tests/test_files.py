import hashlib
import multiprocessing
import os
import resource
import secrets
import signal
from pathlib import Path

import pytest

import nezha_ds.files as files
from nezha_ds.errors import CheckpointError, ConfigError, DataError, LaunchError, NezhaError
from nezha_ds.files import make_folder, sha256_of, unwritable, write_atomically


@pytest.mark.parametrize("data", ["三国\n", b"\x00\xff", memoryview(b"view"), ""])
def test_what_is_written_is_there_and_nothing_else(tmp_path, data):
    path = tmp_path / "file"
    write_atomically(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else bytes(data))
    assert list(tmp_path.iterdir()) == [path]


def in_a_process(action, *arguments):
    """What the action returns when a process of its own runs it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(action, arguments)


def write_on_a_full_disk(path):
    # The kernel refuses the byte after the first 1,000 with EFBIG, in the middle of the write, as a full disk does.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write_atomically(path, b"new" * 1000)
    except LaunchError as error:
        return str(error)
    return "written"


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    message = in_a_process(write_on_a_full_disk, path)
    assert message.startswith(f"cannot write {path} (File too large); free space")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_dev_full_says_what_a_full_disk_says(tmp_path, monkeypatch):
    """The real ENOSPC: the temporary file is a link to a device that is always full."""
    path = tmp_path / "file"
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0")
    temporary = tmp_path / ".file.0.tmp"
    temporary.symlink_to("/dev/full")
    with pytest.raises(LaunchError, match="No space left on device"):
        write_atomically(path, b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    """At the moment of the rename, the data is complete and synced under another name, and the old file still there."""
    path = tmp_path / "file"
    path.write_text("old")
    order = []
    replace, fsync = Path.replace, os.fsync

    def watched_replace(self, target):
        order.append(("rename", self.read_text(), path.read_text()))
        return replace(self, target)

    def watched_fsync(descriptor):
        order.append("sync")
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", watched_replace)
    monkeypatch.setattr(files.os, "fsync", watched_fsync)
    write_atomically(path, "new")
    assert order == ["sync", ("rename", "new", "old"), "sync"]


def die_before_the_rename(path):
    Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
    write_atomically(path, "new")


def test_a_kill_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    process = multiprocessing.get_context("spawn").Process(target=die_before_the_rename, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"


# Root may write anywhere but into what is no folder, and what is not there.
def test_a_place_that_cannot_be_written_is_named(tmp_path):
    place = tmp_path / "missing" / "below"
    with pytest.raises(LaunchError, match=f"cannot write {place} "):
        write_atomically(place, "data")
    with pytest.raises(LaunchError, match="Is a directory"):
        write_atomically(tmp_path, "data")


def test_a_place_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="Not a directory"):
        write_atomically(tmp_path / "file" / "below", "data")


def test_folders_are_made_with_their_parents(tmp_path):
    folder = make_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert make_folder(folder) == folder


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below"):
        with pytest.raises(LaunchError, match=f"cannot write {place} .*choose another folder"):
            make_folder(place)


def make_folder_as_nobody(folder):
    os.setuid(65534)
    try:
        make_folder(folder)
    except LaunchError as error:
        return str(error)
    return "made"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    assert "Permission denied" in in_a_process(make_folder_as_nobody, tmp_path)
    assert "Permission denied" in in_a_process(make_folder_as_nobody, tmp_path / "below")


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_sha256(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_user_can_mend_every_error_of_ours_and_a_scheduler_must_not_retry():
    for kind in (ConfigError, DataError, CheckpointError, LaunchError):
        assert issubclass(kind, NezhaError)
        assert kind("text").exit_code == 2
    assert unwritable(Path("x"), OSError(28, "No space left on device")).exit_code == 2
