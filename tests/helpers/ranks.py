"""Real ranks: the deepspeed launcher, as a user starts it, with an extensions folder of the tests' own."""

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DEEPSPEED = Path(sys.executable).with_name("deepspeed")


def environment(extensions: Path | None = None) -> dict[str, str]:
    """The environment of a rank. ninja, which compiles DeepSpeed's extension, lies beside this Python."""
    path = os.pathsep.join([str(DEEPSPEED.parent), os.environ["PATH"]])
    python_path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PATH": path, "PYTHONPATH": python_path}
    return env | ({"TORCH_EXTENSIONS_DIR": str(extensions)} if extensions else {})


def free_port() -> int:
    """A port that nobody listens on, and that no connection takes before a server does: the kernel gives clients
    ports from 32768 on. None comes twice.
    """
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_PORTS = iter(random.SystemRandom().sample(range(10_000, 32_768), 22_768))


def command(script: str | Path, *arguments: str, ranks: int) -> list[str]:
    """What starts a script on some ranks of this machine."""
    launcher = [str(DEEPSPEED), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [*launcher, str(script), *arguments]


def run(script: str | Path, *arguments: str, ranks: int, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    """Run to the end; stdout and stderr as text."""
    return subprocess.run(
        command(script, *arguments, ranks=ranks),
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_well(script: str | Path, *arguments: str, ranks: int, timeout: int = 900) -> str:
    """Run to the end and expect exit code 0; everything that was printed."""
    done = run(script, *arguments, ranks=ranks, timeout=timeout)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-5000:]
    return printed
