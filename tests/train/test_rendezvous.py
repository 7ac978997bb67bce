"""Where ranks of several nodes meet: read off Slurm, told by MPI, and over a card that leads to the others."""

import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.train.rendezvous import PORTS, card_towards, hosts_of, settle_rendezvous
from nezha_ds.world import World
from tests.helpers import ranks
from tests.helpers.processes import wait_for

MEETING = ranks.REPOSITORY / "tests" / "train" / "scripts" / "meeting.py"


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    {
        "n1": ["n1"],
        "n[1-3]": ["n1", "n2", "n3"],
        "gpu[08-10,2],login": ["gpu08", "gpu09", "gpu10", "gpu2", "login"],
        "r[1-2]n[0-1]-ib,x": ["r1n0-ib", "r1n1-ib", "r2n0-ib", "r2n1-ib", "x"],
    }.items(),
)
def test_slurms_lists_of_hosts(nodelist: str, hosts: list[str]) -> None:
    assert hosts_of(nodelist) == hosts


@given(st.lists(st.integers(0, 10_000), min_size=1, unique=True), st.integers(1, 6))
def test_any_set_of_numbers_comes_back(numbers: list[int], width: int) -> None:
    """Compressed as Slurm does it: runs of neighbours become ranges."""
    ordered = sorted(numbers)
    runs = [list(run) for _, run in itertools.groupby(ordered, lambda number: number - ordered.index(number))]
    ranges = [f"{run[0]:0{width}}" + (f"-{run[-1]:0{width}}" if len(run) > 1 else "") for run in runs]
    assert hosts_of(f"n[{','.join(ranges)}]") == [f"n{number:0{width}}" for number in ordered]


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "1234", "GLOO_SOCKET_IFNAME": "ib0"}
    for name, value in {**given, "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    settle_rendezvous(World(rank=1, world_size=2, node=1))
    assert {name: os.environ[name] for name in given} == given


def test_slurm_tells_address_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of nodes that are no names of hosts: srun's own address. The port follows from the job."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "no-such-host[1-2]")
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    settle_rendezvous(World(rank=1, world_size=2, node=1))
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert int(os.environ["MASTER_PORT"]) == PORTS[1234567 % len(PORTS)]
    assert "GLOO_SOCKET_IFNAME" not in os.environ  # loopback leads nowhere


def test_loopback_and_strangers_have_no_card() -> None:
    assert card_towards("127.0.0.1") == card_towards("no-such-host.invalid") == ""


def test_mpi_ranks_agree_on_a_free_port() -> None:
    done = mpirun(2)
    assert done.returncode == 0, done.stderr
    first, second = sorted(done.stdout.split())
    assert first.removeprefix("0:") == second.removeprefix("1:")
    address, port = first.removeprefix("0:").split(":")
    assert address == "127.0.0.1" and int(port) in PORTS


def test_a_port_that_is_taken_ends_all_mpi_ranks_with_one_reason() -> None:
    with a_taken_port() as port:
        done = mpirun(2, MASTER_PORT=str(port))
    assert done.returncode
    assert f"(MASTER_PORT: {port}); choose another" in done.stderr


def free_environment() -> dict[str, str]:
    """A rank's, in which nobody has said where to meet."""
    return {name: value for name, value in ranks.environment().items() if not name.startswith(("MASTER_", "GLOO_"))}


@contextmanager
def a_taken_port() -> Iterator[int]:
    """A port of this host on which this process listens."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def mpirun(number: int, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Ranks that meet and tell where."""
    if shutil.which("mpirun") is None:
        pytest.skip("needs Debian's openmpi-bin")
    return subprocess.run(
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(number), sys.executable, MEETING, "tell"],
        env=free_environment() | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


# ---------------------------------------------------------------------------------------- hosts with a wrong first card


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[int]]:
    """Two hosts, as processes in namespaces of their own: `n1` and `n2`, as virtual machines often are.

    Each has a first card, eth0, with the same address on both, for which its own name stands and which leads nowhere,
    and a second, eth1, that leads to the other.
    """
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and Debian's iproute2")
    with ExitStack() as stack:
        pids = [stack.enter_context(_host(tmp_path, number)) for number in (1, 2)]
        run("ip", "link", "add", "eth1", "netns", pids[0], "type", "veth", "peer", "name", "eth1", "netns", pids[1])
        for number, pid in enumerate(pids, 1):
            inside(pid, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "nowhere")
            for card, address in {
                "lo": "127.0.0.2/8",
                "eth0": "10.0.2.15/24",
                "eth1": f"192.168.56.{number}/24",
            }.items():
                inside(pid, "ip", "address", "add", address, "dev", card)
                inside(pid, "ip", "link", "set", card, "up")
        yield pids


@contextmanager
def _host(folder: Path, number: int) -> Iterator[int]:
    """A process alone in its network, host name and mounts, with an /etc/hosts of its own; its id."""
    names = folder / f"hosts-{number}"
    other = 3 - number
    names.write_text(f"127.0.0.1 localhost\n10.0.2.15 n{number}\n192.168.56.{other} n{other}\n")
    ready = folder / f"ready-{number}"
    script = f"hostname n{number} && mount --bind {names} /etc/hosts && touch {ready} && exec sleep infinity"
    with subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sh", "-c", script]) as process:
        try:
            wait_for(ready.exists, process)
            yield process.pid
        finally:
            process.kill()


def inside(pid: int, *command: object) -> str:
    return run("nsenter", "--target", pid, "--net", "--uts", "--mount", *command)


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_ranks_meet_although_their_first_card_leads_nowhere(hosts: list[int]) -> None:
    """As in a Slurm step on n1 and n2: an all-reduce of gloo's between the two."""
    slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    processes = [
        subprocess.Popen(
            ["nsenter", "--target", str(pid), "--net", "--uts", "--mount", sys.executable, MEETING, "meet"],
            env=free_environment()
            | {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": "0", **slurm}
            | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node, pid in enumerate(hosts)
    ]
    told = [process.communicate(timeout=600) for process in processes]
    assert [out for out, _ in told] == ["n1 eth1 3\n", "n1 eth1 3\n"], told
