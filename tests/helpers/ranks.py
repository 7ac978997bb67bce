"""Real ranks, as a user starts them, with an extensions folder of the tests' own.

Under `deepspeed`, whose two processes cost 2.5 s of CPU time a start, or under `nezha-ds launch`, where it is not the
launcher that a test is about.
"""

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
OURS = Path(sys.executable).with_name("nezha-ds")


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
    """What starts a script on some ranks of this machine under the deepspeed launcher."""
    launcher = [str(DEEPSPEED), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [*launcher, str(script), *arguments]


def our_command(script: str | Path, *arguments: str, ranks: int) -> list[str]:
    """The same under `nezha-ds launch`."""
    return [str(OURS), "launch", "--ranks", str(ranks), "--script", str(script), "--", *arguments]


def run_well(words: list[str], timeout: int = 900) -> str:
    """Run what `command` or `our_command` says to the end and expect exit code 0; everything that was printed."""
    done = subprocess.run(
        words, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-5000:]
    return printed
