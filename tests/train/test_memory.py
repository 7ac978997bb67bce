"""What a rank has of memory, against what the system says by other means."""

import os
import resource
from mmap import PAGESIZE, mmap

import pytest
import torch

from nezha_ds.train.memory import Memory, host_memory, process_memory


def test_a_process_holds_what_it_holds():
    """Beside the same numbers by way of other calls of the system."""
    before = process_memory()
    kept = mmap(-1, 256 << 20)  # pages of its own: what the process has freed before is not taken again
    for page in range(0, len(kept), PAGESIZE):
        kept[page] = 1
    after = process_memory()
    assert after["allocated"] - before["allocated"] > 0.9 * len(kept)
    assert after["peak"] >= after["allocated"]
    kept.close()
    assert process_memory()["allocated"] < after["allocated"] - (200 << 20)
    # The kernel counts in batches of pages. Of a process that a larger one started, rusage tells that one's peak.
    most = process_memory()["peak"]
    assert 0.99 * after["allocated"] < most < 1.01 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_host_has_what_it_has():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < host_memory() <= pages * 1.01


@pytest.mark.parametrize(
    ("own", "limits", "least"),
    [
        ("0::/", {}, 64),
        ("0::/", {"": "max"}, 64),
        ("0::/", {"": 16}, 16),
        ("0::/job/step", {"job/step": "max", "job": 8}, 8),
        ("0::/job/step", {"job/step": 4, "job": 8}, 4),
        ("0::/job", {"job": 128}, 64),
        ("3:memory:/old\n0::/job", {"job": 2}, 2),
        ("3:memory:/only-old", {}, 64),
        ("0::/gone", {}, 64),
    ],
)
def test_the_least_limit_of_the_groups_above_counts(tmp_path, own, limits, least):
    """In GiB, of a host with 64."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {64 << 20} kB\nMemFree:  1 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(f"{own}\n")
    for group, limit in limits.items():
        folder = tmp_path / "groups" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit if limit == 'max' else limit << 30}\n")
    assert host_memory(tmp_path / "proc", tmp_path / "groups") == least << 30


def test_a_cpu_has_no_allocator_that_tries_again():
    read = Memory(torch.device("cpu")).read()
    assert read.retries is None
    assert 0 < read.allocated <= read.peak
    assert read.limit == host_memory()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_its_own():
    memory = Memory(torch.device("cuda", 0))
    kept = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    read = memory.read()
    assert kept.numel() <= read.allocated <= read.peak < read.limit
    assert memory.read().retries == 0
