"""`doctor --cluster` on two hosts: the wrong card, a folder of one's own, a rank 0 that is not reached."""

import sys
from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.hosts import FRONT, Host, two_hosts

QUICK = ("--size", "2", "--slow", "0.1", "--wait", "600", "--limit", "600")


def examine(hosts: tuple[Host, Host], folder: Path, mounts: str = "true", **variables: str) -> tuple[list[int], str]:
    """By our launcher on each host: the exit codes, and what rank 0 printed. `mounts` are those of the second host."""
    port = ranks.free_port()
    both = [
        host.popen(
            *(sys.executable, "-m", "nezha_ds.cli", "launch", "--ranks", "1", "--nodes", "2", "--node-rank", str(node)),
            *("--master", f"{FRONT[0]}:{port}", "--doctor", "--", "--folder", str(folder), *QUICK),
            env=ranks.environment() | {"OMP_NUM_THREADS": "1"} | variables,
            mounts=mounts if node else "true",
        )
        for node, host in enumerate(hosts)
    ]
    (told, logged), _ = [process.communicate(timeout=900) for process in both]
    return [process.returncode for process in both], told + logged


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory):
    with two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both


def test_a_wrong_first_card_and_a_folder_of_ones_own_are_told_with_their_cures(hosts, tmp_path):
    mounts = f"mount -t tmpfs none {tmp_path}"
    codes, told = examine(hosts, tmp_path, mounts=mounts, GLOO_SOCKET_IFNAME="back0")
    assert codes == [2, 2], told
    for host, other, address in (("left", "right", "10.78.0.1"), ("right", "left", "10.79.0.1")):
        words = f"{host}: {other} cannot reach it at {address}, which gloo takes there (GLOO_SOCKET_IFNAME=back0)"
        assert f"failure  {words}" in told
    assert told.count("→ export GLOO_SOCKET_IFNAME=front0 there") == 2
    assert "the folder that rank 0 made is not here" in told
    assert "2 of 2 nodes are not fit: left, right; sums and links were not tried" in told


def test_left_alone_ranks_take_the_card_that_leads_to_rank_0(hosts, tmp_path):
    """Although on both hosts their own name leads to the other card."""
    codes, told = examine(hosts, tmp_path)
    assert codes == [0, 0], told
    assert "all 2 nodes with 2 ranks are fit for a run" in told
    assert "front0 1500" in told
    assert [*tmp_path.iterdir()] == []


def test_a_master_that_nobody_reaches_is_told_with_where_its_name_leads(hosts, tmp_path):
    """Rank 0's own name leads the other host nowhere: what it would try, in words, and not a minute of silence."""
    rank = hosts[1].popen(
        *(sys.executable, "-m", "nezha_ds.cli", "launch", "--ranks", "1", "--nodes", "2", "--node-rank", "1"),
        *("--master", "right:1234", "--doctor", "--", "--wait", "0.1"),
        env=ranks.environment(),
    )
    _, told = rank.communicate(timeout=900)
    assert rank.returncode == 2
    assert "rank 1 on right does not reach rank 0 within 0.1 s: MASTER_ADDR=right leads to 10.79.0.1" in told
