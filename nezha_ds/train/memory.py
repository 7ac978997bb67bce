"""What a rank has of memory: its device's, or on a CPU its process's beside what the host or container has.

About 100 µs a reading on a GPU, where the allocator counts whatever it does, and 30 µs on a CPU; at log steps.
"""

import re
from pathlib import Path

import torch

from nezha_ds.observe.events import RankMemory

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Memory:
    """Reads one rank's memory; its only state are the allocator's retries already told."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._told = device, 0
        self._limit = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else host_memory()

    def read(self) -> RankMemory:
        """Now; retries are those since the last call."""
        if self._device.type != "cuda":
            return RankMemory(**process_memory(), limit=self._limit)
        before, self._told = self._told, torch.cuda.memory_stats(self._device)["num_alloc_retries"]
        return RankMemory(
            allocated=torch.cuda.memory_allocated(self._device),
            peak=torch.cuda.max_memory_allocated(self._device),
            limit=self._limit,
            retries=self._told - before,
        )


def process_memory(proc: Path = PROC) -> dict[str, int]:
    """What this process holds and the most that it held, in bytes: `allocated`, `peak`."""
    status = (proc / "self/status").read_text()
    return {"allocated": _kilobytes("VmRSS", status), "peak": _kilobytes("VmHWM", status)}


def host_memory(proc: Path = PROC, control_groups: Path = CONTROL_GROUPS) -> int:
    """Bytes that the host has, or the least that a control group above this process allows."""
    limits = [_kilobytes("MemTotal", (proc / "meminfo").read_text())]
    own = re.search(r"^0::/(.*)$", (proc / "self/cgroup").read_text(), re.MULTILINE)
    folder = control_groups / (own[1] if own else "")
    for group in (folder, *folder.parents):
        path = group / "memory.max"
        # "max" where there is no limit.
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)


def _kilobytes(name: str, text: str) -> int:
    """The number of a line such as `VmRSS:     1234 kB`, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, name
    return int(found[1]) * 1024
