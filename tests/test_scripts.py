"""Every shell script of the repository is clean to shellcheck, can be started, and says what it is for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def scripts() -> list[Path]:
    """What git tracks, or would, and the shell runs: by name or by its first line."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and (path.suffix in (".sh", ".sbatch") or _first(path))]


def _first(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline(100)
    return line.startswith(b"#!") and line.split()[-1].endswith((b"bash", b"/sh"))


@pytest.mark.parametrize("script", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_has_nothing_to_say(script):
    if not shutil.which("shellcheck"):
        pytest.skip("needs Debian's shellcheck")
    # -x follows what a script sources, from where the script lies.
    command = ["shellcheck", "-x", "--source-path=SCRIPTDIR", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_it_can_be_started_and_says_what_it_is_for(script):
    first, second, *_ = script.read_text(encoding="utf-8").splitlines()
    assert first == "#!/usr/bin/env bash" or first == "#!/bin/bash"
    assert second.startswith("# ")
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


def test_scripts_are_found():
    names = {str(path.relative_to(ROOT)) for path in scripts()}
    assert {".ci/run", "docker/build_offline.sh", "tests/gpu/run.sh"} <= names
