"""gated_pretrain.py whose rank 1 sleeps in each forward, ten times as long as the forward took.

So it is slow by itself, and slower than another rank of the machine, however fast or busy that is. Whatever state rank
0 comes to is a line of the file `states` beside the gate.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from nezha_ds.batch import Batch
from nezha_ds.cli import main
from nezha_ds.observe.pulse import Pulse
from nezha_ds.train import loop
from nezha_ds.train.engine import Engine
from tests.train.scripts.gated_pretrain import train_step

SLEEPS = 10
STATES: list[str] = []
_forward, _mark = Engine.__call__, Pulse.mark


def forward(self: Engine, batch: Batch) -> Any:
    """The engine's own, and then the sleep."""
    started = time.perf_counter()
    output = _forward(self, batch)
    if self.world.rank == 1 and self.module.training:
        time.sleep(SLEEPS * (time.perf_counter() - started))
    return output


def mark(self: Pulse, state: str, step: int) -> None:
    """The pulse's own, told where it is news."""
    _mark(self, state, step)
    if not self.own.rank and STATES[-1:] != [state]:
        STATES.append(state)
        with Path(os.environ["GATE"]).with_name("states").open("a") as file:
            file.write(f"{state}\n")


if __name__ == "__main__":
    Pulse.mark = mark
    loop.train_step = train_step
    Engine.__call__ = forward
    sys.exit(main(["pretrain", *sys.argv[1:]]))
