"""Which node each rank should be on, where Slurm tells: who did not come can be named by more than a number."""

import re
from collections.abc import Mapping

from nezha_ds.train.rendezvous import hosts_of


def expected_nodes(variables: Mapping[str, str]) -> dict[int, str]:
    """Rank to node, by SLURM_STEP_NODELIST and SLURM_STEP_TASKS_PER_NODE; empty without them.

    Ranks fill one node after the other, as `srun` places them by default.
    """
    nodes = hosts_of(variables.get("SLURM_STEP_NODELIST", ""))
    counts = expand_counts(variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(nodes) != len(counts):
        return {}
    return dict(enumerate(name for name, count in zip(nodes, counts, strict=True) for _ in range(count)))


def expand_counts(text: str) -> list[int]:
    """`2(x3),1` as 2, 2, 2, 1."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]
