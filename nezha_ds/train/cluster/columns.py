"""The columns of the table: what each looks at on one node, what is wrong there, and the cure. Pure functions."""

from collections.abc import Callable

from nezha_ds.train.cluster.survey import Gpu, Node
from nezha_ds.train.cluster.verdict import Cell, Note, View, few, rate_text, size_text, span
from nezha_ds.train.doctor import Status

MOST_DIFFERENCES = 4


def ranks(view: View, node: Node) -> Cell:
    """Which ranks it has, and which of them fell out."""
    notes = [
        Note(
            "failure", f"rank {rank} failed in {view.survey.failed[rank]}", "its log tells more; or leave the node out"
        )
        for rank in node.ranks
        if rank in view.survey.failed
    ]
    if len(node.ranks) != view.ranks_of_a_node and len(view.survey.arrivals) == view.survey.world_size:
        what = f"{len(node.ranks)} ranks, {view.ranks_of_a_node} elsewhere"
        notes.append(Note("failure", what, "start as many on every node"))
    return Cell(span(node.ranks), tuple(notes))


def software(view: View, node: Node) -> Cell:
    """Whether it has what the others have."""
    notes = [
        Note("failure", f"rank {rank} has {name} {value}, most have {view.usual[name]}", "install the same everywhere")
        for rank in node.ranks
        for name, value in (view.survey.machines[rank].software if rank in view.survey.machines else {}).items()
        if value != view.usual[name]
    ]
    machine = view.survey.machines.get(node.main)
    found = [Note(each.status, f"{each.name}: {each.value}", each.cure) for each in machine.findings] if machine else []
    return Cell("differs" if notes else "same" if machine else "-", (*notes[:MOST_DIFFERENCES], *found))


def clock(view: View, node: Node) -> Cell:
    """How far it is from rank 0's, as far as the round trip lets one say."""
    main = view.survey.networks.get(0)
    seen = main.clocks.get(node.main) if main else None
    step = max((abs(one.clock_step) for rank in node.ranks if (one := view.survey.farewells.get(rank))), default=0.0)
    notes = []
    if step > view.limits.clock_step:
        notes.append(
            Note("warning", f"its clock was set by {step:.1f} s meanwhile", "let it settle (chronyc tracking)")
        )
    if seen is None:
        return Cell("0" if node.main == 0 else "-", tuple(notes))
    least = abs(seen.offset) - seen.error
    if least > view.limits.clock_warning:
        status: Status = "failure" if least > view.limits.clock_failure else "warning"
        what = f"its clock is {abs(seen.offset):.1f} s {'ahead of' if seen.offset > 0 else 'behind'} {view.names[0]}'s"
        notes.append(Note(status, what, "start chronyd or ntpd there"))
    return Cell(f"{seen.offset:+.1f} s" if least > 0.1 else f"{seen.offset * 1e3:+.1f} ms", tuple(notes))


def card(view: View, node: Node) -> Cell:
    """Which one gloo takes, whether the others reach it there, and how large its packets are."""
    network, listener = view.survey.networks.get(node.main), view.survey.listeners.get(node.main)
    if network is None or listener is None:
        return Cell("-")
    own, gloo, notes = network.card, listener.card, []
    cure = f"export GLOO_SOCKET_IFNAME={own.name or 'the card that all reach'} there, and NCCL_SOCKET_IFNAME likewise"
    if blind := [view.names[rank] for rank, one in view.survey.networks.items() if node.main in one.unreachable]:
        loop = ", a loopback" if gloo.address.startswith("127.") or gloo.address == "::1" else ""
        what = f"{few(blind)} cannot reach it at {gloo.address}{loop}, which gloo takes there ({listener.chosen_by})"
        notes.append(Note("failure", what, cure))
    elif gloo.name != own.name and len(view.nodes) > 1:
        what = f"gloo takes {gloo.name or gloo.address} ({listener.chosen_by}), the way to the others is {own.name}"
        notes.append(Note("warning", what, cure))
    if own.mtu != view.mtu:
        what = f"packets of {own.mtu} bytes on {own.name}, of {view.mtu} elsewhere: large ones may be lost in silence"
        notes.append(Note("warning", what, f"ip link set {own.name} mtu {view.mtu}"))
    return Cell(f"{gloo.name or gloo.address} {gloo.mtu}", tuple(notes))


def link(view: View, node: Node) -> Cell:
    """Its better link: a link is as slow as the slower of its ends, so a node is no slower than its best one."""
    best = view.best_links
    if node.main not in best:
        return Cell("-")
    cure = "see to its card, cable and switch port, and leave it out until then"
    # Between two nodes there is one link, whose fault may be either's.
    notes = view.slow(best, node.main, "even its better link is", cure) if len(best) > 2 else []
    return Cell(rate_text(best[node.main], "B/s"), tuple(notes))


def inside(view: View, node: Node) -> Cell:
    """All-reduce among its own ranks."""
    rates = view.inside
    notes = view.slow(rates, node.main, "all-reduce inside it is", "see to NVLink or PCIe (nvidia-smi topo -m)")
    return Cell(rate_text(rates[node.main], "B/s") if node.main in rates else "-", tuple(notes))


def sums(view: View, node: Node) -> Cell:
    """Wrong sums, where they tell whose they are; judge.py tells of the others."""
    if not any(rank in view.survey.traffics for rank in node.ranks):
        return Cell("-")
    own = [rank for rank in view.blamed if rank in node.ranks]
    if not own:
        return Cell("exact" if not any(view.survey.traffics[r].wrong for r in node.ranks) else "wrong")
    kinds = dict.fromkeys(kind for one in view.survey.traffics.values() for kind in one.wrong)
    what = f"rank {span(own)} makes sums wrong ({few([*kinds])})"
    return Cell("wrong", (Note("failure", what, "take the node out: its memory, device or card changes data"),))


def product(view: View, node: Node) -> Cell:
    """Its slowest rank's matrix products, and what the driver says of its GPUs."""
    rates, own = view.rates, [rank for rank in node.ranks if rank in view.rates]
    notes: list[Note] = []
    for rank in own:
        compute = view.survey.computes[rank]
        if not compute.correct:
            notes.append(Note("failure", f"rank {rank} multiplies wrong", "take the node out: memory or device is bad"))
        notes += view.slow(rates, rank, f"rank {rank} computes", "look for heat, power limits, other programs there")
        notes += _gpu(view, rank, compute.gpu) if compute.gpu else []
    return Cell(rate_text(min(rates[rank] for rank in own), "FLOP/s") if own else "-", tuple(notes))


def _gpu(view: View, rank: int, gpu: Gpu) -> list[Note]:
    name, notes = f"rank {rank}'s {gpu.name}", list[Note]()
    if gpu.uncorrected or gpu.remapping:
        what = f"{name}: {gpu.uncorrected} uncorrected memory errors"
        notes.append(Note("failure", what + (", rows to be replaced" if gpu.remapping else ""), "reset or replace it"))
    if gpu.slowed:
        notes.append(Note("warning", f"{name} is held down: {', '.join(gpu.slowed)}", "see to cooling and power"))
    if gpu.free < view.limits.gpu_free * gpu.total:
        what = f"{name} has {size_text(gpu.free)} of {size_text(gpu.total)} free"
        notes.append(Note("warning", what, "end what else runs on it (nvidia-smi)"))
    return notes


def folder(view: View, node: Node) -> Cell:
    """The run's folder as checkpoints use it, and how long until one node sees what another wrote."""
    use, main, notes = view.survey.folders.get(node.main), view.survey.folders.get(0), list[Note]()
    if use is None or (node.main and main and main.problem):
        return Cell("-")
    where, first = view.survey.folder, view.names[0]
    cure = "let run.folder lie where every node sees the same files, on a file system made for that"
    if use.problem:
        return Cell("fails", (Note("failure", f"{where}: {use.problem}", cure),))
    ways = {
        f"{first} does not see files written here": use.seen_by_main,
        f"what {first} replaced or renamed is not seen here": use.seen,
    }
    for what, seconds in ways.items() if node.main else ():
        if seconds is None:
            notes.append(Note("failure", f"{where}: {what}", cure))
        elif seconds > view.limits.seen:
            notes.append(Note("warning", f"{where}: {what} for {seconds:.1f} s", "mount it with a shorter actimeo"))
    if use.torn:
        what = f"{where}: {use.torn} reads found half a file, none or an older one while {first} replaced it"
        notes.append(Note("failure", what, cure))
    if node.main and use.lock != "held":
        what = f"{where}: {first}'s lock is not seen here ({use.lock})"
        notes.append(Note("warning", what, "mount it with locks; until then start no second run in one folder"))
    if use.free < view.limits.disk_warning:
        status: Status = "failure" if use.free < view.limits.disk_failure else "warning"
        what = f"{where} has {size_text(use.free)} free"
        notes.append(Note(status, what, "free space, or choose a run folder on another disk"))
    lag = max((seconds for seconds in ways.values() if seconds is not None), default=None)
    return Cell(size_text(use.free) + (f", {lag * 1e3:.0f} ms" if lag is not None else ""), tuple(notes))


def sync(view: View, node: Node) -> Cell:
    """How long an fsync takes there, and how fast it writes."""
    rates = {main: one.rate for main, one in view.survey.folders.items() if one.rate}
    if node.main not in rates:
        return Cell("-")
    slow = view.slow(rates, node.main, "it writes the run's folder", "see to its way to the storage")
    notes = [Note("warning", note.what, note.cure) for note in slow]
    seconds = view.survey.folders[node.main].sync
    if seconds > view.limits.sync:
        what = f"fsync of a small file takes {seconds:.1f} s"
        notes.append(Note("warning", what, "choose a folder on faster storage; the end of every save waits for it"))
    return Cell(f"{seconds * 1e3:.0f} ms, {rate_text(rates[node.main], 'B/s')}", tuple(notes))


def room(view: View, node: Node) -> Cell:
    """Memory and cores of a rank; temporary folder, shared memory and limits."""
    own = [view.survey.machines[rank] for rank in node.ranks if rank in view.survey.machines]
    if not own:
        return Cell("-")
    limits, first, notes = view.limits, own[0], list[Note]()
    memory, cores = first.memory // len(node.ranks), len({core for machine in own for core in machine.cores})
    threads, files = sum(machine.threads for machine in own), max(limits.open_files, 4 * view.survey.world_size)
    if memory < limits.memory:
        what = f"{size_text(memory)} of memory a rank, NEZHA-base wants {size_text(limits.memory)}"
        notes.append(Note("warning", what, "raise the job's memory, or train a smaller model"))
    if threads > cores:
        cure = "ask for more cores a task (--cpus-per-task), bind ranks apart, or lower OMP_NUM_THREADS"
        notes.append(Note("warning", f"{threads} threads on {cores} cores", cure))
    if first.temporary < limits.temporary:
        what = f"{size_text(first.temporary)} free in the temporary folder"
        notes.append(Note("warning", what, "free it, or set TMPDIR"))
    if first.shm < limits.shm and len(own) > 1 and first.software["device"] != "cpu":
        what = f"{size_text(first.shm)} free in /dev/shm"
        notes.append(Note("warning", what, "give the container --shm-size=1g or more"))
    if first.open_files < files:
        notes.append(Note("warning", f"{first.open_files} files may be open (ulimit -n)", f"ulimit -n {files}"))
    if first.infiniband and first.locked_memory is not None and first.locked_memory < limits.locked_memory:
        what = f"{size_text(first.locked_memory)} may be locked (ulimit -l), InfiniBand needs more"
        notes.append(Note("failure", what, "ulimit -l unlimited, in limits.conf or slurmd's service"))
    return Cell(f"{size_text(memory)}, {cores / len(node.ranks):g}", tuple(notes))


COLUMNS: dict[str, Callable[[View, Node], Cell]] = {
    "ranks": ranks,
    "software": software,
    "clock": clock,
    "card, MTU": card,
    "sums": sums,
    "link": link,
    "inside": inside,
    "product": product,
    "folder, seen": folder,
    "fsync, write": sync,
    "memory, cores": room,
}
"""By the column's name, in the table's order. "memory, cores" are a rank's."""
