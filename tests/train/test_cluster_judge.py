"""The judgement of `doctor --cluster`: 128 nodes as values, one thing wrong with one, judged in one process."""

import dataclasses
import io
import json
from collections.abc import Callable

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from nezha_ds.train.cards import Card
from nezha_ds.train.cluster.columns import COLUMNS
from nezha_ds.train.cluster.expected import expand_counts, expected_nodes
from nezha_ds.train.cluster.judge import judge
from nezha_ds.train.cluster.survey import (
    Arrival,
    Clock,
    Compute,
    Farewell,
    FolderUse,
    Gpu,
    Link,
    Listener,
    Machine,
    Network,
    Reduction,
    Survey,
    Traffic,
)
from nezha_ds.train.cluster.table import outcome, show, to_dict
from nezha_ds.train.cluster.verdict import Limits, rate_text, size_text, span
from nezha_ds.train.doctor import GIB, Finding
from tests.helpers.ranks import REPOSITORY

NODES, RANKS = 128, 2
BAD = 17
"""The node that each test spoils; its first rank is BAD * RANKS."""
FIRST = BAD * RANKS


def survey(nodes: int = NODES, ranks: int = RANKS) -> Survey:
    """A cluster with nothing wrong; speeds differ by a tenth, clocks by milliseconds, as they do."""
    found, world = Survey(nodes * ranks, folder="/runs/first"), nodes * ranks
    mains = range(0, world, ranks)
    for rank in range(world):
        node, wobble = rank // ranks, 1 + rank % 7 / 60
        found.arrivals[rank] = Arrival(rank, ranks, node, f"n{node}", "10.0.0.1", f"10.0.0.{node + 1}")
        software = {"our code": "abc", "Python": "3.11.7", "torch": "2.13.0", "device": "NVIDIA H100", "shards": "f00d"}
        cores = tuple(range(rank % ranks * 4, rank % ranks * 4 + 4))
        found.machines[rank] = Machine(software, cores, 4, ranks * 64 * GIB, 9 * GIB, 64 * GIB, 65536, None, True)
        found.computes[rank] = Compute(700e12 * wobble, True, Gpu("NVIDIA H100", 79 * GIB, 80 * GIB))
        around = [(rank + ranks) % world, (rank - ranks) % world] if nodes > 1 else []
        found.traffics[rank] = Traffic(
            reductions=(Reduction(1 << 20, 4e9), Reduction(202 << 20, 90e9)),
            inside=Reduction(202 << 20, 300e9 * wobble),
            links=tuple(Link(peer, 40e9 * wobble) for peer in around),
        )
        found.farewells[rank] = Farewell(0.001)
    for rank in mains:
        card = Card("eth0", f"10.0.0.{rank // ranks + 1}", 9000)
        found.listeners[rank] = Listener(card, "host name n", 4000, "t")
        clocks = {other: Clock(0.002, 0.0001) for other in mains if other} if rank == 0 else {}
        found.networks[rank] = Network(card, clocks=clocks, settings={"NCCL_SOCKET_IFNAME": "eth0"})
        found.folders[rank] = FolderUse(900 * GIB, "", 800e6, 0.004, 0.01, 0.01)
    return found


def changed(table: dict[int, object], rank: int, **values: object) -> None:
    table[rank] = dataclasses.replace(table[rank], **values)  # type: ignore[type-var]


def cut_off(found: Survey) -> None:
    """A node whose name leads to its loopback: nobody reaches it there."""
    for rank in found.networks:
        if rank != FIRST:
            changed(found.networks, rank, unreachable={FIRST: "Connection refused"})
    lost = Listener(Card("lo", "127.0.1.1", 65536), "host name n17", 4000, "t")
    found.listeners[FIRST] = lost
    found.traffics.clear()


def slow_links(found: Survey) -> None:
    """Both links of the node, at both ends."""
    for rank, one in found.traffics.items():
        links = [
            Link(link.peer, link.rate / 10) if BAD in (rank // RANKS, link.peer // RANKS) else link
            for link in one.links
        ]
        changed(found.traffics, rank, links=tuple(links))


def wrong_everywhere(found: Survey) -> None:
    """The share of one of its ranks is lost."""
    for rank in found.traffics:
        changed(found.traffics, rank, wrong={"4,099 × bfloat16": (FIRST + 1,)})


def other_software(**values: str) -> Callable[[Survey], None]:
    return lambda found: changed(found.machines, FIRST + 1, software={**found.machines[0].software, **values})


def clock(offset: float, error: float = 0.001) -> Callable[[Survey], None]:
    return lambda found: found.networks[0].clocks.update({FIRST: Clock(offset, error)})


def in_table(name: str, offset: int = 0, **values: object) -> Callable[[Survey], None]:
    return lambda found: changed(getattr(found, name), FIRST + offset, **values)


def gpu(**values: object) -> Callable[[Survey], None]:
    return lambda found: changed(
        found.computes,
        FIRST,
        gpu=dataclasses.replace(found.computes[FIRST].gpu, **values),  # type: ignore[type-var]
    )


def fallen(found: Survey) -> None:
    found.failed[FIRST + 1] = "compute: it did not end within 60 s"
    del found.computes[FIRST + 1]


# What is wrong with node 17, the column that tells it, and words of the note.
FAILURES: list[tuple[Callable[[Survey], None], str, str]] = [
    (fallen, "ranks", "rank 35 failed in compute"),
    (other_software(torch="2.12.1"), "software", "rank 35 has torch 2.12.1, most have 2.13.0"),
    (other_software(**{"our code": "abd"}), "software", "our code abd"),
    (other_software(shards="beef"), "software", "shards beef, most have f00d"),
    (clock(-40.0), "clock", "40.0 s behind n0"),
    (cut_off, "card, MTU", "n0, n1, n2 and 124 more cannot reach it at 127.0.1.1, a loopback"),
    (wrong_everywhere, "sums", "rank 35 makes sums wrong (4,099 × bfloat16)"),
    (in_table("traffics", 1, wrong={"1 × float32": (0,)}), "sums", "rank 35 makes sums wrong"),
    (slow_links, "link", "even its better link is at 1"),
    (in_table("traffics", inside=Reduction(202 << 20, 20e9)), "inside", "of the others' median"),
    (in_table("computes", 1, rate=200e12), "product", "rank 35 computes at 2"),
    (in_table("computes", 1, correct=False), "product", "rank 35 multiplies wrong"),
    (gpu(uncorrected=3), "product", "3 uncorrected memory errors"),
    (gpu(remapping=True), "product", "rows to be replaced"),
    (in_table("folders", problem="fsync: Invalid argument"), "folder, seen", "/runs/first: fsync: Invalid argument"),
    (in_table("folders", seen_by_main=None), "folder, seen", "n0 does not see files written here"),
    (in_table("folders", seen=None), "folder, seen", "what n0 replaced or renamed is not seen here"),
    (in_table("folders", torn=2), "folder, seen", "2 reads found half a file"),
    (in_table("folders", free=GIB // 2), "folder, seen", "512 MiB free"),
    (in_table("machines", locked_memory=8 << 20), "memory, cores", "8 MiB may be locked"),
]
WARNINGS: list[tuple[Callable[[Survey], None], str, str]] = [
    (clock(2.5), "clock", "2.5 s ahead of n0's"),
    (in_table("farewells", clock_step=-1.5), "clock", "clock was set by 1.5 s"),
    (in_table("networks", card=Card("eth0", "10.0.0.18", 1500)), "card, MTU", "packets of 1500 bytes on eth0, of 9000"),
    (in_table("networks", card=Card("ib0", "10.1.0.18", 9000)), "card, MTU", "the way to the others is ib0"),
    (in_table("folders", seen=4.5), "folder, seen", "is not seen here for 4.5 s"),
    (in_table("folders", lock="ignored"), "folder, seen", "lock is not seen here (ignored)"),
    (in_table("folders", free=5 * GIB), "folder, seen", "5 GiB free"),
    (in_table("folders", rate=80e6), "fsync, write", "writes the run's folder at 10%"),
    (in_table("folders", sync=2.0), "fsync, write", "fsync of a small file takes 2.0 s"),
    (gpu(slowed=("hw_thermal_slowdown",)), "product", "held down: hw_thermal_slowdown"),
    (gpu(free=8 * GIB), "product", "8 GiB of 80 GiB free"),
    (in_table("machines", memory=2 * GIB), "memory, cores", "1 GiB of memory a rank"),
    (in_table("machines", threads=8), "memory, cores", "12 threads on 8 cores"),
    (in_table("machines", shm=64 << 20), "memory, cores", "64 MiB free in /dev/shm"),
    (in_table("machines", open_files=512), "memory, cores", "512 files may be open"),
    (in_table("machines", temporary=1 << 20), "memory, cores", "1 MiB free in the temporary folder"),
    (in_table("machines", findings=(Finding("ninja", "warning", "old", "x"),)), "software", "ninja: old"),
]


def printed(found: Survey) -> str:
    text = io.StringIO()
    show(judge(found), Console(file=text))
    return text.getvalue()


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 2), (2, 1), (3, 2), (128, 8)])
def test_a_healthy_cluster_is_fit(nodes, ranks):
    verdict = judge(survey(nodes, ranks))
    assert verdict.fit and verdict.bad == [] and not verdict.notes
    assert [row.status for row in verdict.rows] == ["ok"] * nodes
    assert (
        printed(survey(nodes, ranks)).splitlines()[-1]
        == f"all {nodes} nodes with {nodes * ranks} ranks are fit for a run"
    )


@pytest.mark.parametrize(("spoil", "column", "words"), FAILURES)
def test_a_bad_node_among_128_is_named_with_its_cure(spoil, column, words):
    found = survey()
    spoil(found)
    verdict = judge(found)
    assert verdict.bad == ["n17"] and not verdict.fit
    notes = verdict.rows[BAD].cells[column].notes
    assert words in notes[0].what and notes[0].cure
    assert [name for name, cell in verdict.rows[BAD].cells.items() if cell.status == "failure"] == [column]
    lines = printed(found).splitlines()
    assert lines[-1].startswith("1 of 128 nodes are not fit: n17")
    assert any(line.startswith("failure  n17: ") and words in line for line in lines)


@pytest.mark.parametrize(("spoil", "column", "words"), WARNINGS)
def test_a_warning_is_told_and_lets_the_run_begin(spoil, column, words):
    found = survey()
    spoil(found)
    verdict = judge(found)
    assert verdict.fit
    assert {row.node.name for row in verdict.rows if row.status != "ok"} == {"n17"}
    assert words in verdict.rows[BAD].cells[column].notes[0].what


def test_every_column_has_a_fault_that_it_tells():
    assert {column for _, column, _ in FAILURES + WARNINGS} == COLUMNS.keys()


def test_several_bad_nodes_are_all_named():
    found = survey()
    for node in (3, 5, 90):
        changed(found.computes, node * RANKS, rate=1e12)
    assert judge(found).bad == ["n3", "n5", "n90"]
    assert printed(found).splitlines()[-1] == "3 of 128 nodes are not fit: n3, n5, n90"


def test_of_two_nodes_the_slower_is_named_but_a_link_names_neither():
    found = survey(2)
    for rank in range(RANKS, 2 * RANKS):
        changed(found.computes, rank, rate=1e12)
    for rank in range(2 * RANKS):
        changed(found.traffics, rank, links=(Link(rank, 1.0),))
    assert judge(found).bad == ["n1"]
    assert judge(found, Limits(slow=0)).fit


def test_of_three_nodes_a_slow_link_is_the_node_that_both_its_links_share():
    found = survey(3, 1)
    rates = {frozenset((0, 1)): 1e9, frozenset((1, 2)): 1e9, frozenset((0, 2)): 10e9}
    for rank in range(3):
        links = tuple(Link(peer, rates[frozenset((rank, peer))]) for peer in range(3) if peer != rank)
        changed(found.traffics, rank, links=links)
    assert judge(found).bad == ["n1"]


def test_a_clock_that_the_round_trip_cannot_tell_from_right_is_right():
    found = survey()
    clock(40.0, error=39.5)(found)
    assert judge(found).rows[BAD].status == "ok"


def test_sums_that_are_wrong_everywhere_lead_to_nobody():
    for wrong in ({"1 × float32": (-1,)}, {"1 × float32": tuple(range(NODES * RANKS))}):
        found = survey()
        for rank in found.traffics:
            changed(found.traffics, rank, wrong=wrong)
        verdict = judge(found)
        assert verdict.bad == [] and not verdict.fit
        assert "lead to no node" in outcome(verdict)


def test_two_ranks_of_one_sum():
    """Of two ranks that both see one's share wrong, that one is named; of two that see both wrong, none."""
    found = survey(2, 1)
    for rank in found.traffics:
        changed(found.traffics, rank, wrong={"1 × float32": (1,)})
    assert judge(found).bad == ["n1"]
    for rank in found.traffics:
        changed(found.traffics, rank, wrong={"1 × float32": (0, 1)})
    assert judge(found).bad == []


def test_missing_ranks_are_named_by_slurms_nodes_where_it_tells():
    found = survey(4, 8)
    found.expected = expected_nodes({"SLURM_STEP_NODELIST": "gpu[08-10],login", "SLURM_STEP_TASKS_PER_NODE": "8(x4)"})
    for rank in (*range(16, 24), 30):
        del found.arrivals[rank]
    for table in (found.machines, found.computes, found.traffics, found.networks, found.folders, found.farewells):
        table.clear()
    verdict = judge(found)
    assert not verdict.fit and found.missing == [*range(16, 24), 30]
    last = printed(found).splitlines()[-1]
    assert last == "rank 16-23, 30 of 32 did not come, of gpu10, login"


def test_fewer_ranks_on_one_node():
    found = survey(3)
    found.world_size = 5
    for table in (found.arrivals, found.traffics):
        del table[5]
    changed(found.traffics, 1, links=())
    changed(found.traffics, 3, links=())
    assert judge(found).bad == ["n2"]


def test_shards_that_nobody_finds():
    found = survey(2)
    for rank in found.machines:
        changed(found.machines, rank, software={"device": "cpu", "shards": "/data has no manifest.json"})
    assert "prepare them first" in judge(found).notes[0].cure
    assert not judge(found).fit


def test_two_nodes_of_one_name_are_two():
    found = survey(2, 1)
    for rank in range(2):
        changed(found.arrivals, rank, host="vm")
    assert [node.name for node in found.nodes] == ["vm#0", "vm#1"]


def test_json_has_every_measurement_and_the_verdict():
    found = survey(2)
    changed(found.computes, 3, correct=False)
    told = json.loads(json.dumps(to_dict(judge(found))))
    assert (told["fit"], told["bad"], told["missing"]) == (False, ["n1"], [])
    assert told["nodes"][1]["cells"]["product"]["status"] == "failure"
    assert told["notes"][0]["node"] == "n1"
    measured = TypeAdapter(Survey).validate_python(told["measured"])
    assert measured == found


def test_slurms_short_forms():
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    assert expected_nodes({"SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_TASKS_PER_NODE": "2,1"}) == {
        0: "a",
        1: "a",
        2: "b",
    }
    assert expected_nodes({}) == {}


def test_numbers_for_people():
    assert [size_text(n) for n in (0, 1023, 1024, 1.5 * GIB, 5000 * GIB)] == [
        "0 B", "1023 B", "1 KiB", "1.5 GiB", "4.883 TiB",
    ]  # fmt: skip
    assert [rate_text(n, "B/s") for n in (0.4, 999, 1000, 1.2e9, 7e14)] == [
        "0.4 B/s", "999 B/s", "1 kB/s", "1.2 GB/s", "700 TB/s",
    ]  # fmt: skip
    assert span([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"


def test_the_page_explains_every_column():
    page = (REPOSITORY / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    assert rows[rows.index("column") + 2 :] == [*COLUMNS]
