"""What is seen of a run from outside while it lives: one run of two ranks, of which rank 1 is slow by itself.

It is looked at before its ranks meet and at a step, and killed there; one rank goes on and is stopped, and once more to
the end.
"""

import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from nezha_ds.config import load
from nezha_ds.errors import Exit, LaunchError
from nezha_ds.observe.events import Record, Start
from nezha_ds.observe.metrics import STATES
from nezha_ds.observe.pulse import Pulse
from nezha_ds.train.presence import present
from nezha_ds.train.recipe import Recipe
from nezha_ds.world import World
from tests.helpers import runs
from tests.helpers.processes import wait_for
from tests.helpers.ranks import free_port
from tests.helpers.runs import Run

Samples = dict[tuple[str, ...], float]
"""(name, label values without the run's) -> value."""
KILLED_AT = 7
"""A step beyond the checkpoint of step 4."""
SLOWED = "tests/train/scripts/slowed_pretrain.py"


@dataclass
class Seen:
    """What the scrapes, the journal and the marks of rank 0 showed."""

    run: Run
    starting: Samples
    """Rank 0, while it waits for rank 1."""
    training: Samples
    named: bool
    """Whether the pulse had a name while the run trained."""
    states: list[str]
    """Of all attempts, one after another."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, warm: None, embedded: Path) -> Seen:
    port, meeting = free_port(), free_port()
    settings = (f"exporter.port={port}", "train.steps=9", "data.prefetch=3")
    # Small buckets are summed in the middle of backward, the rest after it.
    stage_2 = {"stage": 2, "reduce_bucket_size": 5000}
    run = runs.make(tmp_path_factory.mktemp("seen"), embedded, *settings, zero_optimization=stage_2)
    run.script = SLOWED
    processes = [first := run.start_rank(0, 2, KILLED_AT, meeting)]
    try:
        starting = wait_for(lambda: scrape(port), first)
        processes.append(run.start_rank(1, 2, KILLED_AT, meeting))
        wait_for(lambda: run.checkpoint(4).exists(), first)
        run.wait_for_step(KILLED_AT, first)
        training = wait_for(lambda: at_step(port, KILLED_AT), first)
        mapped = [line for line in Path(f"/proc/{first.pid}/maps").read_text().splitlines() if "nezha-pulse" in line]
        assert mapped
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    stop_at(run, port, 5)
    finished = run.start_rank(0, 1, 9, free_port())
    said, _ = finished.communicate()
    assert finished.returncode == Exit.DONE, said
    states = run.recipe.with_name("states").read_text().split()
    return Seen(run, starting, training, not all(line.endswith("(deleted)") for line in mapped), states)


def stop_at(run: Run, port: int, step: int) -> None:
    """One rank goes on until a step, and hears there that it is to stop."""
    process = run.start_rank(0, 1, step, free_port())
    wait_for(lambda: scrape(port).get(("nezha_rank_step", "0")) == step, process)
    process.terminate()
    assert process.stdout and any("SIGTERM: stopping" in line for line in process.stdout)
    run.open_gate()
    process.communicate()
    assert process.returncode == Exit.STOPPED


def scrape(port: int) -> Samples:
    """All samples of a run's exporter; nothing where none listens yet."""
    with suppress(URLError, ConnectionError):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=600) as reply:
            text = reply.read().decode()
        return {
            (sample.name, *(value for label, value in sample.labels.items() if label != "run")): sample.value
            for family in parse(text)
            for sample in family.samples
        }
    return {}


def at_step(port: int, step: int) -> Samples:
    """The same once every rank is there; the last record is written a moment before it is shown."""
    found = scrape(port)
    ranks = [found.get(("nezha_rank_step", rank)) for rank in ("0", "1")]
    return found if ranks == [step, step] and found.get(("nezha_train_global_step",)) == step else {}


pytestmark = pytest.mark.ranks


def test_a_run_is_seen_before_its_ranks_meet(seen: Seen) -> None:
    assert [state for state in STATES if seen.starting["nezha_run_state", state]] == ["starting"]
    assert seen.starting["nezha_rank_last_heartbeat_timestamp_seconds", "0"] > 0
    unknown = {
        "nezha_train_last_step_timestamp_seconds",
        "nezha_train_global_step",
        "nezha_run_start_timestamp_seconds",
    }
    assert not unknown & {name for name, *_ in seen.starting}


def test_each_rank_of_a_node_is_seen_at_its_step(seen: Seen) -> None:
    assert [state for state in STATES if seen.training["nezha_run_state", state]] == ["training"]
    for rank in ("0", "1"):
        assert seen.training["nezha_rank_step", rank] == KILLED_AT
        beat = seen.training["nezha_rank_last_heartbeat_timestamp_seconds", rank]
        assert beat > seen.starting["nezha_rank_last_heartbeat_timestamp_seconds", "0"]
    # Of the last step, which is logged only after it.
    ended = seen.training["nezha_train_last_step_timestamp_seconds",]
    assert seen.training["nezha_run_start_timestamp_seconds",] < ended <= record_of(seen, KILLED_AT).time


def test_nothing_of_a_killed_run_has_a_name_in_shared_memory(seen: Seen) -> None:
    assert not seen.named


def test_the_slow_rank_shows_and_the_one_that_waits_for_it_does_not(seen: Seen) -> None:
    """Rank 0 waits in the sums of gradients most of its time; were they counted, both would be as busy."""
    later = [event for event in records(seen) if 2 < event.step <= KILLED_AT]
    waiting, slow = (sum(event.rank_busy_seconds[rank] for event in later) for rank in (0, 1))
    assert 0 < waiting < slow / 2
    assert waiting < sum(sum(event.step_seconds) for event in later) / 2
    busy = [sum(event.rank_busy_seconds[rank] for event in records(seen)) for rank in (0, 1)]
    assert [seen.training["nezha_rank_busy_seconds_total", rank] for rank in ("0", "1")] == pytest.approx(busy)
    shown = [seen.training["nezha_rank_relative_performance_ratio", rank] for rank in ("0", "1")]
    assert shown == list(record_of(seen, KILLED_AT).relative_performance)


def test_memory_of_each_rank_is_its_processs(seen: Seen) -> None:
    for rank in ("0", "1"):
        held, most, limit = (
            seen.training[f"nezha_rank_memory_{what}_bytes", rank] for what in ("allocated", "peak", "limit")
        )
        # torch alone is 200 MB.
        assert 1e8 < held <= most < limit
    assert not [name for name, *_ in seen.training if "allocator_retries" in name]


def test_batches_lie_ready_and_waits_for_them_are_counted(seen: Seen) -> None:
    event = record_of(seen, KILLED_AT)
    assert event.prefetched_batches is not None and 0 <= event.prefetched_batches <= 3
    assert 0 <= event.stalled_steps <= len(event.step_seconds)
    assert seen.training["nezha_data_prefetched_batches",] == event.prefetched_batches


def test_steps_that_are_made_again_and_starts_are_counted(seen: Seen) -> None:
    told = [(event.step, event.attempt, event.replayed) for event in seen.run.events() if isinstance(event, Start)]
    # The second was stopped and saved, one step after it was told to, where the first had been already.
    assert told == [(0, 1, 0), (4, 2, KILLED_AT - 4), (6, 3, KILLED_AT - 6)]
    assert seen.training["nezha_run_attempt",] == 1


def test_a_run_says_all_that_it_is_at(seen: Seen) -> None:
    """Killed, stopped, and gone on with to the end; no more and nothing out of order."""
    killed = ["starting", "training", "saving", "training"]
    stopped = ["starting", "training", "stopping"]
    done = ["starting", "training", "saving", "training", "evaluating", "saving", "done"]
    assert seen.states == [*killed, *stopped, *done]


def test_a_run_that_fails_says_so_and_frees_its_port(tmp_path: Path) -> None:
    port = free_port()
    recipe = load(Recipe, runs.make(tmp_path, tmp_path / "shards").recipe, [f"exporter.port={port}"])
    told: list[Pulse] = []
    with pytest.raises(LaunchError), present(recipe, World()) as presence:
        assert scrape(port)["nezha_run_state", "starting"] == 1
        presence.pulse.mark("training", 5)
        told.append(presence.pulse)
        raise LaunchError("the disk is full")
    assert [pulse.own[1:3] for pulse in told] == [("failed", 5)]
    assert not scrape(port)


def records(seen: Seen) -> list[Record]:
    """Of the first attempt."""
    told = seen.run.events()
    second = [number for number, event in enumerate(told) if isinstance(event, Start)][1]
    return [event for event in told[:second] if isinstance(event, Record)]


def record_of(seen: Seen, step: int) -> Record:
    return next(event for event in records(seen) if event.step == step)
