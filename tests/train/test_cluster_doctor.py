"""`doctor --cluster` on real ranks: two that are two nodes to their launcher, whole, spoiled, and one missing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nezha_ds.cli import main
from nezha_ds.train.cluster.compute import is_product, parse_driver
from nezha_ds.train.cluster.traffic import rounds, share, wrong_shares
from tests.helpers import ranks

SCRIPT = "tests/train/scripts/spoiled_doctor.py"
QUICK = ("--size", "2", "--slow", "0.1", "--wait", "600", "--limit", "600")
"""Small, and no judgement on speeds that a busy machine may make differ."""


def start(rank: int, port: int, folder: Path, *arguments: str, faults: str = "") -> "subprocess.Popen[str]":
    """One rank of two, on a node of its own."""
    own = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": rank}
    where = {"SLURMD_NODENAME": f"n{rank}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return subprocess.Popen(
        [sys.executable, SCRIPT, faults, "--folder", str(folder), *QUICK, *arguments],
        env=ranks.environment() | {name: str(value) for name, value in (own | where).items()},
        cwd=ranks.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def examine(folder: Path, *arguments: str, faults: str = "") -> tuple[list[int], str, str]:
    """Both ranks' exit codes, and what rank 0 printed and logged."""
    port = ranks.free_port()
    both = [start(rank, port, folder, *arguments, faults=faults) for rank in range(2)]
    (told, logged), _ = [process.communicate(timeout=900) for process in both]
    return [process.returncode for process in both], told, logged


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two whole nodes come to, as JSON."""
    folder = tmp_path_factory.mktemp("healthy")
    recipe = folder / "recipe.toml"
    recipe.write_text(f'[run]\nfolder = "{folder}/run"\n[data]\nshards = "{folder}/shards"\n')
    codes, told, logged = examine(folder / "run", "--json", "--recipe", str(recipe))
    assert [path.name for path in folder.iterdir()] == ["recipe.toml"], "it leaves nothing behind"
    return json.loads(told) | {"codes": codes, "logged": logged}


def test_two_whole_nodes_are_fit_but_for_shards_that_are_not_there(healthy):
    assert healthy["codes"] == [2, 2]
    assert (healthy["bad"], healthy["missing"]) == ([], []), healthy
    assert [note["what"].partition(":")[0] for note in healthy["notes"] if note["status"] == "failure"] == ["shards"]
    assert [node["name"] for node in healthy["nodes"]] == ["n0", "n1"]


def test_everything_was_measured_on_every_node(healthy):
    measured = healthy["measured"]
    for name in ("arrivals", "machines", "computes", "listeners", "networks", "folders", "traffics", "farewells"):
        assert measured[name].keys() == {"0", "1"}, name
    for rank in ("0", "1"):
        assert measured["computes"][rank]["correct"] and measured["computes"][rank]["rate"] > 0
        assert not measured["traffics"][rank]["wrong"]
        assert [one["bytes"] for one in measured["traffics"][rank]["reductions"]] == [1 << 20, 2_000_000]
        assert [one["peer"] for one in measured["traffics"][rank]["links"]] == [1 - int(rank)]
        assert not measured["networks"][rank]["unreachable"]
        assert measured["folders"][rank]["rate"] > 0
    other = measured["folders"]["1"]
    assert other["lock"] == "held" and other["torn"] == 0
    assert other["seen"] is not None and other["seen_by_main"] is not None


def test_the_clock_of_the_same_host_is_the_same(healthy):
    clock = healthy["measured"]["networks"]["0"]["clocks"]["1"]
    assert abs(clock["offset"]) <= clock["error"] + 1e-4


def test_a_node_with_many_faults_is_named_with_all_of_them(tmp_path):
    codes, told, _ = examine(tmp_path, faults="sum,slow,software,clock")
    assert codes == [2, 2]
    *lines, last = told.splitlines()
    assert last == "1 of 2 nodes are not fit: n1"
    for words in (
        "rank 1 makes sums wrong",
        "rank 1 computes at",
        "rank 1 has torch 1.0",
        "its clock is 100.0 s behind n0's",
    ):
        assert [line for line in lines if line.startswith(f"failure  n1: {words}")], told
    assert not [line for line in lines if line.startswith("failure  n0")]


def test_a_rank_that_dies_on_the_way_is_named_with_where(tmp_path):
    port = ranks.free_port()
    both = [start(rank, port, tmp_path, faults="dead") for rank in range(2)]
    (told, _), _ = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [2, 9]
    assert "failure  n1: rank 1 failed in compute" in told
    assert told.splitlines()[-1] == "1 of 2 nodes are not fit: n1"


def test_a_rank_that_does_not_come_is_named(tmp_path):
    alone = start(0, ranks.free_port(), tmp_path, "--wait", "1")
    told, _ = alone.communicate(timeout=900)
    assert alone.returncode == 2
    assert told.splitlines()[-1] == "rank 1 of 2 did not come"


def test_the_launcher_starts_it_and_its_code_is_the_doctors(tmp_path):
    launcher = [sys.executable, "-m", "nezha_ds.cli", "launch", "--ranks", "2", "--doctor", "--"]
    done = subprocess.run(
        [*launcher, *QUICK, "--folder", str(tmp_path)],
        env={**ranks.environment(), "OMP_NUM_THREADS": "1"},
        cwd=ranks.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inside" in done.stdout
    assert done.stdout.splitlines()[-1] == "all 1 nodes with 2 ranks are fit for a run"


def test_without_a_launcher_it_says_how_to_start_it(capsys):
    assert main(["doctor", "--cluster"]) == 2
    told = capsys.readouterr().err
    assert "srun nezha-ds doctor --cluster" in told and len(told.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------- pure functions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 1000])
def test_sums_are_exact_in_every_precision_and_tell_whose_share_is_lost(dtype, world_size):
    shares = [share(rank, world_size, 4099).to(dtype) for rank in range(world_size)]
    total = torch.stack(shares).sum(0)
    assert total.dtype == dtype and wrong_shares(total, world_size) == ()
    lost = world_size - 1
    assert wrong_shares(total - shares[lost], world_size) == (lost,)
    assert wrong_shares(total + shares[lost], world_size) == (lost,)
    total[7] += 1
    assert wrong_shares(total, world_size) == (-1,)


@pytest.mark.parametrize("nodes", range(2, 12))
def test_every_neighbour_on_the_ring_meets_once_and_nobody_has_two_partners(nodes):
    found = rounds(nodes)
    for pairs in found:
        ends = [end for pair in pairs for end in pair]
        assert len(ends) == len({*ends})
    links = [frozenset(pair) for pairs in found for pair in pairs]
    assert len(links) == len({*links})
    assert {*links} == {frozenset((node, (node + 1) % nodes)) for node in range(nodes)}
    assert rounds(1) == []


def test_a_product_that_is_wrong_in_one_place_is_found():
    generator = torch.Generator().manual_seed(3)
    one, other = (torch.randint(-1, 2, (64, 64), generator=generator).float() for _ in range(2))
    product = one @ other
    assert is_product(one, other, product)
    product[63, 0] += 1
    assert not is_product(one, other, product)


def test_what_the_driver_says():
    assert parse_driver("0, No, Not Active, Not Active, Not Active") == (0, False, ())
    assert parse_driver("[N/A], [N/A], Active, Not Active, Active") == (
        0,
        False,
        ("hw_thermal_slowdown", "sw_thermal_slowdown"),
    )
    assert parse_driver("2, Yes, Not Active, Not Active, Not Active") == (2, True, ())
