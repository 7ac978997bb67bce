"""A disk that is full at any moment: one clear line, nothing half-written, and with room again the same bytes.

The disk is real where one can be mounted (a tmpfs, cut to the page at which the file in question no longer fits), and
everywhere a limit on the size of a file, which the system answers in the same place, with EFBIG instead of ENOSPC.
"""

import gzip
import resource
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nezha_ds.corpus import encode
from nezha_ds.corpus import prepare as module
from nezha_ds.corpus.lock import LOCK
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.errors import LaunchError
from nezha_ds.shards import SHARD_BYTES
from nezha_ds.text.vocab import SPECIAL_TOKENS
from tests.helpers import preparation

PAGE = resource.getpagesize()
TASK_BYTES = 1000
REASON = r"\((File too large|No space left on device)\); free space on its disk, or choose another folder"


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALLEST_TASK", TASK_BYTES)


@contextmanager
def no_file_over(size: int) -> Generator[None]:
    """As if the disk had so much room for each file. Python ignores the signal; the write fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def disk(folder: Path, pages: int) -> Generator[None]:
    """A disk of so many pages on the folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def can_mount() -> bool:
    """A container that runs as root may still not be allowed to."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder), 1):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


# ------------------------------------------------------------------------------------- what does not fit under a limit


@dataclass(frozen=True)
class Case:
    """Inputs of which one file is over `limit`, and which."""

    settings: PrepareSettings
    limit: int
    name: str
    shard_bytes: int = SHARD_BYTES


def grown(folder: Path) -> tuple[str, ...]:
    """Texts of 15 to 90 kB, packed to a few, so that the guess of the room that they need lets them pass."""
    for number in range(6):
        path = folder / f"{number}.txt.gz"
        path.write_bytes(gzip.compress(f"第{number}篇，{'好多好多的文字。' * 600}\n\n".encode() * (number + 1)))
    return tuple(str(folder / f"{number}.txt.gz") for number in range(6))


def a_shard(folder: Path) -> Case:
    """The fourth of five: the first two texts share a task."""
    settings = PrepareSettings(inputs=grown(folder), out=folder / "out", heldout=0, workers=1)
    return Case(settings, 58_000, "train-00003-000.arrow")


def a_receipt(folder: Path) -> Case:
    """The second of four, of a task with 40 documents and as many shards."""
    return _of_ids(folder, "1 7 9 " * 200, "\n\n".join(["7 " * 5] * 80), "7 9 1 " * 200, name="receipts/00001.json")


def the_manifest(folder: Path) -> Case:
    """Of 30 shards."""
    return _of_ids(folder, *(f"{number} 7 9 " * 200 for number in range(30)), name="manifest.json")


def _of_ids(folder: Path, *documents: str, name: str) -> Case:
    """With a vocabulary that is not the largest of all files."""
    vocabulary, source = folder / "vocab.txt", folder / "ids.txt"
    vocabulary.write_text("\n".join([*SPECIAL_TOKENS, *map(str, range(100))]))
    source.write_text("\n\n".join(documents))
    options = {"vocabulary": vocabulary, "segmenter": "pretokenized", "heldout": 0.0, "workers": 1}
    return Case(PrepareSettings(inputs=(str(source),), out=folder / "out", **options), 5_000, name, shard_bytes=20)


def undisturbed(settings: PrepareSettings) -> dict[str, bytes]:
    out = settings.out.with_name("undisturbed")
    prepare(settings.model_copy(update={"out": out}), progress=False)
    return preparation.contents(out)


def nothing_is_half_written(out: Path, whole: dict[str, bytes], name: str) -> None:
    assert not (out / name).exists()
    assert not (out / "manifest.json").exists()
    assert not [*out.rglob(".*")]  # neither temporaries nor the lock
    for path in out.glob("*.arrow"):
        assert path.read_bytes() == whole[path.name]


@pytest.mark.parametrize("case_of", [a_shard, a_receipt, the_manifest])
def test_a_file_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case_of: Callable[[Path], Case]
) -> None:
    case = case_of(tmp_path)
    monkeypatch.setattr(encode, "SHARD_BYTES", case.shard_bytes)
    out, whole = case.settings.out, undisturbed(case.settings)
    with no_file_over(case.limit), pytest.raises(LaunchError, match=rf"^cannot write {out / case.name} {REASON}$"):
        prepare(case.settings, progress=False)
    nothing_is_half_written(out, whole, case.name)
    before = preparation.finished(out)
    assert before
    prepare(case.settings, progress=False)
    assert preparation.contents(out) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("how", ["--workers=2", "--executor=mpi"])
def test_one_line_from_any_number_of_processes(tmp_path: Path, how: str) -> None:
    case = a_shard(tmp_path)
    out, whole = case.settings.out, undisturbed(case.settings)
    arguments = (*case.settings.inputs, "--out", out, "--heldout", 0, *how.split("="))
    launcher = preparation.MPIRUN if "mpi" in how else ()
    code, told = preparation.run(*arguments, launcher=launcher, TASK_BYTES=TASK_BYTES, FILE_BYTES=case.limit)
    assert code == 2
    assert told.count("nezha-ds: cannot write") == 1
    assert "Traceback" not in told
    nothing_is_half_written(out, whole, case.name)
    assert preparation.run(*arguments, launcher=launcher, TASK_BYTES=TASK_BYTES)[0] == 0
    assert preparation.contents(out) == whole


# ------------------------------------------------------------------------------------------------------- a disk of ours


def pages(*sizes: int) -> int:
    return sum(-(-size // PAGE) for size in sizes)


def room_before(whole: dict[str, bytes], name: str) -> int:
    """The pages that are full when the file is due: identity, lock, shards, each with its receipt, and the rest."""
    first = pages(len(whole["prepare.json"]), len(LOCK))
    shards = [len(data) for file, data in whole.items() if file.endswith(".arrow")]
    if name == "manifest.json":
        last = pages(len(whole["vocab.txt"]), len(whole["report.json"]))
        return first + pages(*shards) + len(shards) + last
    if name.startswith("receipts/"):
        return first + pages(*shards[:3]) + 2
    return first + pages(*shards[:3]) + 3 + pages(shards[3]) - 1


if can_mount():

    @pytest.mark.parametrize("name", ["train-00003-000.arrow", "receipts/00002.json", "manifest.json"])
    def test_a_full_disk(tmp_path: Path, name: str) -> None:
        settings = PrepareSettings(inputs=grown(tmp_path), out=tmp_path / "disk" / "out", heldout=0, workers=1)
        whole = undisturbed(settings.model_copy(update={"out": tmp_path / "out"}))
        with disk(tmp_path / "disk", room_before(whole, name)):
            with pytest.raises(LaunchError, match=rf"^cannot write {settings.out / name} {REASON}$"):
                prepare(settings, progress=False)
            nothing_is_half_written(settings.out, whole, name)
            before = preparation.finished(settings.out)
            assert len(before) == {"t": 3, "r": 2, "m": 5}[name[0]]
            subprocess.run(["mount", "-o", "remount,size=64m", tmp_path / "disk"], check=True)
            prepare(settings, progress=False)
            assert preparation.contents(settings.out) == whole
            assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_processes_on_a_full_disk(tmp_path: Path) -> None:
        inputs, out = grown(tmp_path), tmp_path / "disk" / "out"
        settings = PrepareSettings(inputs=inputs, out=tmp_path / "out", heldout=0, workers=1)
        whole = undisturbed(settings)
        arguments = (*inputs, "--out", out, "--heldout", 0, "--workers", 2)
        with disk(tmp_path / "disk", room_before(whole, "train-00003-000.arrow")):
            code, told = preparation.run(*arguments, TASK_BYTES=TASK_BYTES)
            assert (code, told.count("nezha-ds: cannot write")) == (2, 1)
            assert "(No space left on device)" in told
            nothing_is_half_written(out, whole, "manifest.json")
            subprocess.run(["mount", "-o", "remount,size=64m", tmp_path / "disk"], check=True)
            assert preparation.run(*arguments, TASK_BYTES=TASK_BYTES)[0] == 0
            assert preparation.contents(out) == whole
