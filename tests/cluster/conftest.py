"""A Slurm in which jobs of one partition give way to those of the other, and wait as long as a test needs."""

from collections.abc import Iterator

import pytest

from tests.helpers.slurm import Slurm, slurm

PATIENT = {"KillWait": "600", "SlurmdTimeout": "600"}
"""Seconds: nothing is killed and no node given up because the machine is busy."""
EAGER = {"SchedulerParameters": "batch_sched_delay=0,sched_min_interval=1,sched_interval=1"}
"""A job whose time has come is started within a second, not a minute."""


@pytest.fixture(scope="package")
def jobs() -> Iterator[Slurm]:
    """Two nodes of two cores; a job in `high` puts one in `low` back into the queue."""
    partitions = {"low": "PriorityTier=1 PreemptMode=REQUEUE GraceTime=600", "high": "PriorityTier=9 PreemptMode=OFF"}
    settings = {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", **PATIENT, **EAGER}
    with slurm(nodes=2, cpus=2, partitions=partitions, **settings) as cluster:
        yield cluster
