"""A compilation that was killed leaves a lock of torch's; the next run does not wait for it."""

import os
import signal
import subprocess
import sys
import threading
import time

from nezha_ds.train.extensions import compiling_alone

HOLD = """
import sys, time
from pathlib import Path
from torch.utils.file_baton import FileBaton
from nezha_ds.train.extensions import compiling_alone

with compiling_alone():
    folder = Path(sys.argv[1]) / "extension"
    folder.mkdir(exist_ok=True)
    assert FileBaton(str(folder / "lock")).try_acquire()
    print("holding", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_killed_compilation_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"

    entered = threading.Event()

    def enter() -> None:
        with compiling_alone():
            entered.set()

    waiting = threading.Thread(target=enter, daemon=True)
    waiting.start()
    time.sleep(0.3)
    assert not entered.is_set(), "two compile at once"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert entered.wait(timeout=600)
    waiting.join()
    assert not (tmp_path / "extension" / "lock").exists()


def test_a_lock_that_somebody_holds_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "extension").mkdir()
    lock = tmp_path / "extension" / "lock"
    lock.touch()
    with lock.open(), compiling_alone():
        assert lock.exists()
