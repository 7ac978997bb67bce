"""Collectives between all ranks over the backend of the run: right to the bit, and how fast, also between two nodes.

**Sums.** Place i of a vector belongs to rank i mod W. There that rank puts a whole number from 1 to 127, and all others
put 0: in fp32 and in bf16 alike every sum is exact, in any order of adding, for any number of ranks; and a place that
comes out wrong tells whose share was lost, doubled or changed.

**Bandwidth.** Bus bandwidth as nccl-tests define it, 2 (W - 1) / W · bytes / seconds, so that it can be held against
the hardware's whatever W is (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md). All ranks leave a
collective together, so it names nobody. What names a node are links: each node's ranks send to the same ranks of the
next node and back, on a ring of nodes in two or three rounds in which no node has two partners. A node with a bad card
is slow with both neighbours, a bad cable between switches shows on one link.

About 5 s, of which most is gloo's or NCCL's meeting.
"""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from nezha_ds.train.cluster.survey import Link, Node, Reduction, Traffic
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World, set_default

SMALL = 1 << 20
"""nccl-tests' usual point where latency still counts."""
LINK_BYTES = 64 << 20
SUM_PLACES = (1, 4099, 1 << 20)
"""One number, a length that no number of ranks divides, a chunk for each channel."""
MEASURE_SECONDS = 1.0
MOST_REPEATS = 20


def exchange(store: Any, world: World, nodes: Sequence[Node], size: int, seconds: float) -> Traffic:
    """Meet, add up, measure; collective. `size` is that of the large vector in bytes; `seconds` the limit of a round.

    RuntimeError, of torch's, when another rank is lost on the way.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    # So that a round that hangs raises here, where NCCL would end the process without a word.
    set_default("TORCH_NCCL_BLOCKING_WAIT", "1")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=cast(Any, dist).PrefixStore("group", store),
        rank=world.rank,
        world_size=world.world_size,
        timeout=timedelta(seconds=seconds),
    )
    try:
        # A run's control group, which is gloo's on every device.
        Ranks(world).wait()
        own = next(node for node in nodes if world.rank in node.ranks)
        return Traffic(
            wrong=_wrong_sums(world, device),
            reductions=tuple(_reduction(each, device, None, world.world_size) for each in (SMALL, size)),
            inside=_inside(own, size, device),
            links=tuple(_links(world.rank, nodes, min(size, LINK_BYTES), device)),
        )
    finally:
        dist.destroy_process_group()


def all_reduce(tensor: Tensor, group: Any = None) -> None:
    """The collective under test, in place."""
    dist.all_reduce(tensor, group=group)


def share(rank: int, world_size: int, places: int) -> Tensor:
    """What a rank puts into a sum: (places,) whole numbers, 0 but at its own places."""
    places_of_all = torch.arange(places)
    return torch.where(places_of_all % world_size == rank, 1 + places_of_all % 127, 0)


def wrong_shares(total: Tensor, world_size: int) -> tuple[int, ...]:
    """The ranks most of whose share of a sum (places,) is not as it was put in; -1 for what is wrong besides."""
    places = torch.arange(total.numel())
    wrong = total.cpu().double() != 1.0 + places % 127
    count = torch.bincount(places[wrong] % world_size, minlength=world_size)
    whole = 2 * count > torch.bincount(places % world_size, minlength=world_size)
    scattered = bool(count[~whole].any())
    return (*([-1] if scattered else []), *torch.nonzero(whole).flatten().tolist())


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """The links of a ring of nodes, in rounds in which every node has one partner at most."""
    if nodes < 2:
        return []
    ring = [(node, (node + 1) % nodes) for node in range(nodes if nodes > 2 else 1)]
    last = [ring.pop()] if nodes % 2 and nodes > 1 else []
    return [each for each in (ring[0::2], ring[1::2], last) if each]


# --------------------------------------------------------------------------------------------------------------- inside


def _wrong_sums(world: World, device: torch.device) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for places in SUM_PLACES:
            tensor = share(world.rank, world.world_size, places).to(device, dtype)
            all_reduce(tensor)
            if wrong := wrong_shares(tensor, world.world_size):
                found[f"{places:,} × {str(dtype).removeprefix('torch.')}"] = wrong
    return found


def _reduction(size: int, device: torch.device, group: Any, ranks: int) -> Reduction:
    tensor = torch.zeros(max(1, size // 4), device=device)
    seconds = _best(lambda: all_reduce(tensor, group), device, group)
    return Reduction(size, 2 * (ranks - 1) / ranks * size / seconds)


def _inside(node: Node, size: int, device: torch.device) -> Reduction | None:
    if len(node.ranks) < 2:
        return None
    # Only the members make it: 128 such groups would be made by all ranks one after another otherwise.
    group = dist.new_group(list(node.ranks), use_local_synchronization=True)
    return _reduction(size, device, group, len(node.ranks))


def _links(rank: int, nodes: Sequence[Node], size: int, device: torch.device) -> list[Link]:
    """This rank's links to its counterparts on the neighbours; every rank takes part in every round."""
    links = []
    for pairs in rounds(len(nodes)):
        dist.barrier()
        for left, right in pairs:
            for one, other in zip(nodes[left].ranks, nodes[right].ranks, strict=False):
                if rank in (one, other):
                    peer = other if rank == one else one
                    links.append(Link(peer, _to_and_fro(rank, peer, size, device)))
    return links


def _to_and_fro(rank: int, peer: int, size: int, device: torch.device) -> float:
    """Bytes a second between two ranks, of the better of two times there and back, after one that opens the way."""
    tensor = torch.zeros(size, dtype=torch.uint8, device=device)
    best = float("inf")
    for number in range(3):
        part = tensor if number else tensor[:1]
        _finish(device)
        start = time.perf_counter()
        for action in (dist.send, dist.recv) if rank < peer else (dist.recv, dist.send):
            action(part, peer)
        _finish(device)
        if number:
            best = min(best, time.perf_counter() - start)
    return 2 * size / best


def _best(action: Callable[[], None], device: torch.device, group: Any) -> float:
    """Seconds of the quickest of several, as many on every rank: about as fit into `MEASURE_SECONDS` on the slowest."""

    def timed() -> float:
        _finish(device)
        start = time.perf_counter()
        action()
        _finish(device)
        return time.perf_counter() - start

    timed()
    first = torch.tensor([timed()], device=device)
    dist.all_reduce(first, dist.ReduceOp.MAX, group)
    repeats = max(1, min(MOST_REPEATS, int(MEASURE_SECONDS / float(first))))
    return min(timed() for _ in range(repeats))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
