"""A rank that only meets the others.

meeting.py tell   where it would: RANK:ADDRESS:PORT
meeting.py meet   does, by gloo: MASTER_ADDR, the card, and the sum of all ranks' numbers counted from 1
"""

import os
import sys

from nezha_ds.errors import NezhaError
from nezha_ds.train.rendezvous import settle_rendezvous
from nezha_ds.world import find_world, set_rendezvous


def main(what: str) -> int:
    """The exit code."""
    world = find_world()
    try:
        settle_rendezvous(world)
    except NezhaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    set_rendezvous(world)
    if what == "tell":
        # In one piece: mpirun may put one rank's output into another's line.
        os.write(1, f"{world.rank}:{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}\n".encode())
        return 0
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    number = torch.tensor([world.rank + 1])
    dist.all_reduce(number)
    dist.destroy_process_group()
    print(os.environ["MASTER_ADDR"], os.environ.get("GLOO_SOCKET_IFNAME"), int(number))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
