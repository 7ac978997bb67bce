"""launch/pretrain.py that begins no step beyond LAST_STEP until the file GATE is there.

So a test finds a run under way, however late it looks: at a step of its own, and not at one that is over already.
"""

import os
import sys
import time
from pathlib import Path

from nezha_ds.cli import main
from nezha_ds.train import loop
from nezha_ds.train.loop import Job
from nezha_ds.train.meter import LossMeter

_train_step = loop.train_step


def train_step(job: Job, step: int, meter: LossMeter) -> None:
    """The loop's own, after the gate; `step` steps are done."""
    while step >= int(os.environ.get("LAST_STEP", sys.maxsize)) and not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)
    _train_step(job, step, meter)


if __name__ == "__main__":
    loop.train_step = train_step
    sys.exit(main(["pretrain", *sys.argv[1:]]))
