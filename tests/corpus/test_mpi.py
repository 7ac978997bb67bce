"""Real ranks under mpirun write the bytes that one process writes, and end together when one fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nezha_ds.corpus import executor
from nezha_ds.corpus import prepare as module
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.vocabulary import VocabularySettings, train_vocabulary
from nezha_ds.errors import LaunchError

TASK_BYTES = 2000
SCRIPT = f"""
import os
import sys
from pathlib import Path
from nezha_ds.corpus import prepare as module
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.errors import NezhaError
module._SMALLEST_TASK = {TASK_BYTES}
*inputs, out, on_error = sys.argv[1:]
settings = PrepareSettings(
    inputs=tuple(inputs), out=Path(out), executor="mpi", deduplicate=True, near_duplicates=0.9,
    on_error=on_error
)
try:
    manifest = module.prepare(settings, progress=False)
    # A file each: mpirun may put one rank's output into another's line.
    Path(out + "-told", str(os.getpid())).write_text(manifest.fingerprint)
except NezhaError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def mpirun(folder: Path, *arguments: object, script: str = SCRIPT) -> "subprocess.CompletedProcess[str]":
    if shutil.which("mpirun") is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no mpirun: install openmpi-bin")
        pytest.skip("no mpirun on this machine")
    path = folder / "script.py"
    path.write_text(script)
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3", sys.executable, str(path)]
    paths = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    return subprocess.run(
        [*launcher, *map(str, arguments)], env=paths, capture_output=True, text=True, timeout=600, check=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_text(path: Path) -> Path:
    numbers = [number * 7 % 250 for number in range(400)]  # with copies
    path.write_text("\n\n".join(f"第{number}篇文字，说的是{number % 9 * '好'}事。" for number in numbers))
    return path


def test_ranks_write_the_bytes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALLEST_TASK", TASK_BYTES)
    source, bad = write_text(tmp_path / "a.txt"), tmp_path / "bad.jsonl"
    bad.write_text('{"text": "好。"}\n{"text": "半')
    inputs = (str(source), str(bad))
    for workers in (1, 2):
        settings = PrepareSettings(
            inputs=inputs,
            out=tmp_path / str(workers),
            workers=workers,
            deduplicate=True,
            near_duplicates=0.9,
            on_error="skip",
        )
        manifest = prepare(settings, progress=False)
    told = tmp_path / "mpi-told"
    told.mkdir()
    done = mpirun(tmp_path, *inputs, tmp_path / "mpi", "skip")
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in told.iterdir()] == [manifest.fingerprint] * 3
    assert len(manifest.shards) >= 10
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "mpi")


def test_a_fault_on_a_rank_ends_all_with_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "好。"}\n{"text": "半')
    done = mpirun(tmp_path, write_text(tmp_path / "a.txt"), bad, tmp_path / "out", "stop")
    assert done.returncode == 2
    assert done.stderr.count("bad.jsonl, line 2: not JSON") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_one_rank_has_nobody_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: 1)))
    monkeypatch.setitem(sys.modules, "mpi4py", alone)
    monkeypatch.setitem(sys.modules, "mpi4py.futures", SimpleNamespace(MPICommExecutor=None))
    with pytest.raises(LaunchError, match="has no rank but this one, which only hands out work; start it with `mpirun"):
        executor.on_ranks(lambda _: None)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(LaunchError, match=r"executor 'mpi' needs MPI \(.*mpi4py.*\); install one \(Debian: openmpi"):
        executor.on_ranks(lambda _: None)


def test_ranks_train_the_vocabulary_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt"):
        write_text(tmp_path / "in" / name)
    shared: dict[str, Any] = {"inputs": (str(tmp_path / "in"),), "separation": "line", "min_frequency": 1}
    expected = train_vocabulary(VocabularySettings(out=tmp_path / "one", workers=1, **shared), progress=False)
    arguments = ["vocab", tmp_path / "in", "--separation", "line", "--min-frequency", 1, "--executor", "mpi"]
    done = mpirun(tmp_path, *arguments, "--out", tmp_path / "mpi", script="from nezha_ds import cli\ncli.main()")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mpi").read_bytes() == (tmp_path / "one").read_bytes() == expected.data
