"""A rank's loader in a process of its own, for the tests of start and memory: reads, and prints JSON.

    python -m tests.data.feed FOLDER FIRST SAMPLES [SAMPLES ...]

`seconds` of a core from nothing opened to the first micro-batch of 32, from sample number FIRST on; `anonymous`, the
MiB that the process had to itself (RssAnon: without the pages of mapped files) after it had read each number of SAMPLES
in turn.
"""

import json
import sys
import time
from itertools import islice
from pathlib import Path

from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.world import World
from tests.data.folders import RANDOM_IDS, SPECIAL

MICRO_BATCH = 32


def main(folder: str, first: int, samples: list[int]) -> None:
    began = time.process_time()
    stream = Stream(DataSettings(shards=folder), MaskingSettings(), 1, MICRO_BATCH, World(), SPECIAL, RANDOM_IDS)
    with build_loader(stream, global_batch=MICRO_BATCH, first=first) as loader:
        next(loader)
        seconds, anonymous = time.process_time() - began, []
        for count in samples:
            for _ in islice(loader, -(-count // MICRO_BATCH)):
                pass
            anonymous.append(_anonymous())
    print(json.dumps({"seconds": seconds, "anonymous": anonymous, "plan": loader.plan_size}))


def _anonymous() -> float:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(count) for count in sys.argv[3:]])
