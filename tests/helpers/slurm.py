"""A real Slurm on this host: munged, slurmctld and a slurmd for each node, for as long as a `with` lasts.

Everything lies in a folder of its own and listens on free ports, so it meets no other Slurm and no other munge of the
machine. As root, without systemd and cgroups; up in about a second. Debian: `apt-get install slurm-wlm`.

A node is a slurmd with a name and as many CPUs as it is told, not as many as there are. Partitions are lines of
slurm.conf without their name, so that preemption, grace times and limits can be had:

    with slurm(nodes=2, partitions={"low": "PreemptMode=REQUEUE GraceTime=5", "high": "PriorityTier=9"},
               PreemptType="preempt/partition_prio", PreemptMode="REQUEUE") as cluster:
        cluster.run("srun", "-N2", "hostname")
        cluster.daemons["n1"].kill()  # a node is lost
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.processes import environment_of
from tests.helpers.ranks import environment, free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "scontrol")
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MessageTimeout=100
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster: where its files are, and its daemons by name (`munged`, `slurmctld`, `n1`, `n2` …)."""

    folder: Path
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """For srun, sbatch and all the others, and for what they start."""
        return environment() | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: object, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """A command of Slurm's, to whatever end."""
        words = [str(word) for word in command]
        return subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)

    def popen(self, *command: object) -> "subprocess.Popen[str]":
        """A command of Slurm's, begun."""
        words, pipe = [str(word) for word in command], subprocess.PIPE
        return subprocess.Popen(words, env=self.env, stdout=pipe, stderr=pipe, text=True)

    def ranks(self, number: int) -> list[int]:
        """The processes of all steps' tasks of this number, by id."""
        return [pid for pid, env in self.members() if f"SLURM_PROCID={number}".encode() in env]

    def members(self) -> list[tuple[int, list[bytes]]]:
        """Everything that runs in the cluster, with its environment: daemons, steps, tasks."""
        mark = f"SLURM_CONF={self.env['SLURM_CONF']}".encode()
        everybody = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [(pid, env) for pid in everybody if mark in (env := environment_of(pid))]

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground; it dies with this process."""
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command], env=self.env, stdout=output, stderr=output
            )

    def wait_for(self, expected: str, *command: str, seconds: float = 600) -> None:
        """Until a command prints this."""
        end = time.monotonic() + seconds
        while (done := self.run(*command)).stdout.strip() != expected:
            assert time.monotonic() < end, f"{command}: {done.stdout}{done.stderr}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of what each daemon has to say."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm(
    nodes: int = 2, cpus: int = 2, partitions: Mapping[str, str] | None = None, **settings: str
) -> Generator[Slurm]:
    """Nodes `n1`, `n2` … of so many CPUs. The first partition is the default one; `settings` go into slurm.conf.

    The test is skipped, which fails in CI, without Slurm or root.
    """
    if os.geteuid() or not all(map(shutil.which, PROGRAMS)):
        pytest.skip("needs root and Debian's slurm-wlm")
    # Not below pytest's folder: a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Slurm(folder)
    try:
        partitions = partitions or {"main": ""}
        _configure(folder, nodes, cpus, partitions, settings)
        _start(cluster, nodes, next(iter(partitions)))
        yield cluster
    finally:
        _stop(cluster)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, nodes: int, cpus: int, partitions: Mapping[str, str], settings: Mapping[str, str]) -> None:
    host = socket.gethostname().partition(".")[0]
    lines = [
        _CONF.format(folder=folder, host=host, port=free_port()),
        *(f"{name}={value}" for name, value in settings.items()),
        *(
            f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={cpus}"
            for number in range(1, nodes + 1)
        ),
        *(
            f"PartitionName={name} Nodes=ALL Default={'NO' if number else 'YES'} State=UP {options}"
            for number, (name, options) in enumerate(partitions.items())
        ),
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    # A temporary folder for each node: the PMIx plugins of two nodes would meet in one.
    for name in ("state", *(f"tmp-n{number}" for number in range(1, nodes + 1))):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)


def _start(cluster: Slurm, nodes: int, partition: str) -> None:
    folder = cluster.folder
    files = [f"--{name}={folder / file}" for name, file in _MUNGE_FILES.items()]
    cluster.start("munged", "munged", "--foreground", "--force", *files)  # force: whoever owns /tmp
    cluster.wait_for("", "munge", "--no-input", "--output=/dev/null", f"--socket={folder}/munge.socket")
    cluster.start("slurmctld", "slurmctld", "-D")
    for number in range(1, nodes + 1):
        cluster.start(f"n{number}", "slurmd", "-D", "-N", f"n{number}")
    cluster.wait_for(str(nodes), "sinfo", "--noheader", "--states=idle", "--format=%D", f"--partition={partition}")


_MUNGE_FILES = {
    "key-file": "munge.key",
    "socket": "munge.socket",
    "pid-file": "munge.pid",
    "seed-file": "munge.seed",
    "log-file": "munge.log",
}


def _stop(cluster: Slurm) -> None:
    """kill -9 of whoever has this cluster in the environment: daemons, steps and what runs in them, until none is left.

    Cancelling jobs first would take seconds, and does not reach the steps of a node that a test has killed.
    """
    while members := cluster.members():
        for pid, _ in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in cluster.daemons.values():
            daemon.wait()
