"""Where DeepSpeed's extensions are compiled, and by one process at a time.

On a CPU, DeepSpeed compiles its communication at first use, under a lock file of torch's that has two faults: ranks
that compile at once have died on a half-built file, and a process that is killed meanwhile leaves the lock, for which
every later run waits in silence (pytorch #189245). So each machine has a folder of its own, processes enter it one
after the other under a lock of the kernel's, which dies with its holder, and whoever is inside removes locks that
nobody holds.
"""

import fcntl
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nezha_ds.files import make_folder
from nezha_ds.world import set_default, variable

log = logging.getLogger(__name__)


def extensions_folder() -> Path:
    """TORCH_EXTENSIONS_DIR, or a folder of this machine's own, since a home may be on a disk that nodes share."""
    cache = Path(variable("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(variable("TORCH_EXTENSIONS_DIR") or cache / "nezha_ds" / "extensions" / socket.gethostname())


def is_prebuilt() -> bool:
    """Whether DeepSpeed was installed with its communication on CPUs compiled, as docker/Dockerfile does."""
    found = importlib.util.find_spec("deepspeed")
    folders = (found.submodule_search_locations or ()) if found else ()
    return any(any(Path(folder).glob("ops/comm/deepspeed_shm_comm_op*.so")) for folder in folders)


@contextmanager
def compiling_alone() -> Iterator[None]:
    """Be the only process of this machine in the extensions folder, without locks that a killed one left."""
    folder = make_folder(extensions_folder())
    set_default("TORCH_EXTENSIONS_DIR", str(folder))
    with (folder / ".nezha_ds.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for lock, state in find_locks(folder).items():
            if not is_held(state):
                log.warning("removing %s, which a killed compilation left", lock)
                lock.unlink(missing_ok=True)
        yield


def find_locks(root: Path) -> dict[Path, os.stat_result]:
    """Torch's locks under an extensions folder."""
    # root/NAME/lock with TORCH_EXTENSIONS_DIR, root/py311_cpu/NAME/lock without.
    found = {lock: _stat(lock) for lock in sorted({*root.glob("*/lock"), *root.glob("*/*/lock")})}
    return {lock: state for lock, state in found.items() if state is not None}


def is_held(file: os.stat_result) -> bool:
    """Whether a process of this machine has the file open, as far as /proc lets this user see.

    torch keeps its lock open while it compiles.
    """
    opened = (_stat(link) for link in Path("/proc").glob("[0-9]*/fd/*"))
    return any(state is not None and os.path.samestat(state, file) for state in opened)


def _stat(path: Path) -> os.stat_result | None:
    """None when it is gone meanwhile: processes end, locks are released."""
    try:
        return path.stat()
    except OSError:
        return None
