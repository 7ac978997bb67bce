"""One rank of a pretraining run: `deepspeed launch/pretrain.py`; `--help` shows examples.

The same as `nezha-ds pretrain`, as a script that the deepspeed launcher, srun and mpirun can start.
"""

import sys

from nezha_ds.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
