"""transformers 4.57.6, the last with NEZHA, in an environment of its own."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-hf" / "bin" / "python"


@pytest.fixture(scope="session")
def oracle() -> Callable[[Path], None]:
    """Has oracle.py answer what a folder asks."""
    if not PYTHON.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{PYTHON} is missing, and CI must compare with transformers; run make .venv-hf")
        pytest.skip("make .venv-hf")

    def ask(folder: Path) -> None:
        command = [PYTHON, "-m", "tests.model.oracle", folder]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr

    return ask
