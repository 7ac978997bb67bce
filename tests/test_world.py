import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.errors import LaunchError
from nezha_ds.world import World, find_world, set_rendezvous, threads_per_rank, variable

# The variables that each launcher sets on rank 5 of 8, the second of four on node 1.
LAUNCHED = {
    "torchrun": {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"},
    "deepspeed": {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"},
    "srun": {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    },
    "Open MPI": {
        "OMPI_COMM_WORLD_RANK": "5",
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    },
    "MPICH": {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"},
}
FIFTH = World(rank=5, world_size=8, local_rank=1, local_world_size=4, node=1)


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_every_launcher_is_understood(launcher):
    assert find_world(LAUNCHED[launcher]) == FIFTH


def test_without_a_launcher_there_is_one_rank():
    assert find_world({}) == World()
    assert World().is_main and World().is_node_main


def test_a_batch_shell_is_not_a_rank():
    """sbatch sets SLURM_PROCID=0 and SLURM_NTASKS=8 in the script itself, where nobody else was started."""
    shell = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"}
    assert find_world(shell) == World()
    assert find_world({**shell, "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}).world_size == 8


def test_an_explicit_rank_wins_over_the_scheduler():
    """`srun` of one `deepspeed` launcher a node: SLURM_* describes the launchers, RANK the ranks."""
    both = {**LAUNCHED["srun"], "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    assert find_world(both) == World(rank=0, world_size=2, local_rank=0, local_world_size=2)


def test_half_a_description_is_passed_over():
    assert find_world({"RANK": "3", **LAUNCHED["Open MPI"]}) == FIFTH


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "five"}, "RANK='five' is not a number"),
        ({"RANK": "-1"}, "RANK='-1' is not a number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE='' is not a number"),
        ({"RANK": "8"}, "rank 8 of 8 .* is impossible"),
        ({"LOCAL_RANK": "4"}, "local 4 of 4.* is impossible"),
        ({"WORLD_SIZE": "0"}, "is impossible"),
    ],
)
def test_what_is_impossible_is_named(changes, message):
    with pytest.raises(LaunchError, match=message):
        find_world({**LAUNCHED["torchrun"], **changes})


@given(st.integers(1, 64), st.integers(1, 8), st.data())
def test_the_bare_minimum_describes_nodes_of_equal_size(nodes, per_node, data):
    """RANK, WORLD_SIZE and LOCAL_WORLD_SIZE alone, as a Kubernetes manifest may set them."""
    rank = data.draw(st.integers(0, nodes * per_node - 1))
    env = {"RANK": str(rank), "WORLD_SIZE": str(nodes * per_node), "LOCAL_WORLD_SIZE": str(per_node)}
    world = find_world(env)
    assert (world.node, world.local_rank) == divmod(rank, per_node)


def test_the_rendezvous_is_completed_and_never_overruled():
    env = {"MASTER_PORT": "1234", "LOCAL_SIZE": "2"}
    set_rendezvous(World(rank=1, world_size=2, local_rank=1, local_world_size=2), env)
    assert env == {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1234",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }
    assert find_world(env) == World(rank=1, world_size=2, local_rank=1, local_world_size=2)


def test_several_nodes_need_an_address():
    with pytest.raises(LaunchError, match="MASTER_ADDR is not set"):
        set_rendezvous(FIFTH, {})
    env = {"MASTER_ADDR": "node0"}
    set_rendezvous(FIFTH, env)
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("node0", "29500")


def test_ranks_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_per_rank(FIFTH, cores=16) == 4
    assert threads_per_rank(FIFTH, cores=2) == 1
    assert threads_per_rank(World()) == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_per_rank(FIFTH, cores=16) == 3


def test_a_variable_has_a_default(monkeypatch):
    monkeypatch.setenv("NEZHA_TEST", "1")
    assert variable("NEZHA_TEST") == "1"
    monkeypatch.delenv("NEZHA_TEST")
    assert (variable("NEZHA_TEST"), variable("NEZHA_TEST", "2")) == ("", "2")
