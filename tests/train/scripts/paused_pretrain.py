"""launch/pretrain.py that stands still at the place PAUSE_AT until the file GATE is there.

What stands there leaves the file `at-RANK` beside the gate, so that a test knows what a rank does when it sends a
signal. With ONLY_RANK, only that rank stands still.
"""

import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nezha_ds.cli import main
from nezha_ds.train import orphan

PLACES = {
    "before the meeting": ("nezha_ds.train.run", "check_recipe"),
    "preparing": ("nezha_ds.train.source", "prepare"),
    "compiling": ("nezha_ds.train.engine", "compiling_alone"),
    "planning": ("nezha_ds.train.source", "load_plan"),
    "a step": ("nezha_ds.train.loop", "train_step"),
    "evaluating": ("nezha_ds.train.evaluate", "pretraining_losses"),
    "saving": ("nezha_ds.train.snapshot", "gather_weights"),
}


def stand_still() -> None:
    gate, rank = Path(os.environ["GATE"]), os.environ.get("RANK", "0")
    if os.environ.get("ONLY_RANK", rank) == rank:
        gate.with_name(f"at-{rank}").touch()
        while not gate.exists():
            time.sleep(0.01)


def change(module: str, name: str) -> None:
    """Stand still before each call of a function."""
    loaded = importlib.import_module(module)
    function = getattr(loaded, name)

    def paused(*arguments: Any, **named: Any) -> Any:
        stand_still()
        return function(*arguments, **named)

    setattr(loaded, name, paused)


def behind(first: Callable[[], None]) -> None:
    """Called when signals are noted and before anything that starts threads is imported, as in a true run."""
    first()
    change(*PLACES[os.environ["PAUSE_AT"]])


if __name__ == "__main__":
    stop_with_launcher = orphan.stop_with_launcher
    orphan.stop_with_launcher = lambda: behind(stop_with_launcher)
    sys.exit(main(["pretrain", *sys.argv[1:]]))
