"""What bench-loader tells was read by real processes at the same time, and a rank that fails is heard by all."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nezha_ds import cli
from nezha_ds.data.bench import RATES, STAGES, BenchSettings, Reading, Report, Watch, _sum_up, measure
from nezha_ds.data.plan import load_plan
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import DataError
from nezha_ds.shards import read_manifest
from nezha_ds.text.vocab import SHIPPED
from tests.bench.harness import REPOSITORY
from tests.data.folders import random_columns, write_folder
from tests.data.test_masking import make_rows, run
from tests.helpers.processes import wait_for


def prepare(folder: Path, shards: int = 3) -> Path:
    write_folder(folder, [random_columns(seed, 400) for seed in range(shards)])
    (folder / "vocab.txt").write_bytes(SHIPPED.read_bytes())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def report(folder) -> Report:
    bench = BenchSettings(micro_batch=8, ranks=2, seconds=1, gpu_rate=100.0)
    return measure(DataSettings(shards=str(folder), length=64), MaskingSettings(), bench)


def test_one_process_is_measured_and_then_all_together(report, folder):
    plan = load_plan(folder, read_manifest(folder), "train", DataSettings(shards=str(folder), length=64))
    assert report.samples == len(plan)
    assert [one.processes for one in report.measurements] == [1, 2]
    for one in report.measurements:
        assert one.tokens_per_second == one.sequences_per_second * 64
        assert one.sequences_per_second > 0
        assert one.first_batch_seconds > 0
        assert 0 < one.memory_per_rank < 200 << 20
        assert one.cores > 0
        assert sum(one.shares.values()) == pytest.approx(1)


def test_gpus_are_fed_by_all_processes_and_cost_the_time_of_one(report):
    alone, together = report.measurements
    (fed,) = report.gpus
    assert fed.gpus == together.sequences_per_second / 100
    assert fed.cores == 100 * alone.cpu_seconds_per_sequence
    # A core makes what a process makes that has the core to itself.
    assert fed.cores == pytest.approx(100 * alone.cores / alone.sequences_per_second, rel=0.01)


def test_what_processes_read_adds_up_and_the_slowest_start_counts():
    readings = [
        Reading(0.5, 2.0, 1.0, 4000, 10, {"masking": 3, "slicing": 1}),
        Reading(0.7, 1.0, 1.0, 1000, 30, {"masking": 0, "slicing": 4}),
    ]
    summed = _sum_up(readings, 128)
    assert summed.sequences_per_second == 3000
    assert (summed.first_batch_seconds, summed.memory_per_rank, summed.cores) == (0.7, 30, 1.5)
    assert summed.cpu_seconds_per_sequence == 2 / 5000
    assert summed.shares == {"reading": 0, "slicing": 0.625, "masking": 0.375, "batches": 0}


def test_a_thread_is_found_at_what_it_does_and_not_when_it_waits():
    rows, stop = make_rows(random_columns(0, 3000), 128), threading.Event()

    def masks():
        while not stop.is_set():
            run(rows, MaskingSettings())

    for work, busy in ((masks, True), (stop.wait, False)):
        thread = threading.Thread(target=work, name="loader")
        thread.start()
        with Watch() as watch:
            if busy:
                wait_for(lambda watch=watch: watch.looks["masking"] > 10)
            else:
                time.sleep(0.2)
        stop.set()
        thread.join()
        stop.clear()
        assert set(watch.looks) == set(STAGES.values())
        assert sum(watch.looks.values()) == watch.looks["masking"]
        assert bool(watch.looks["masking"]) == busy


def test_the_stages_are_modules_that_are_there():
    for module in STAGES:
        assert __import__(module, fromlist=["_"]).__name__ == module


def test_a_damaged_shard_ends_every_process_with_its_name(tmp_path):
    shard = prepare(tmp_path, shards=1) / "train-00000.arrow"
    data, settings = DataSettings(shards=str(tmp_path), length=64), BenchSettings(ranks=2, seconds=3600)
    load_plan(tmp_path, read_manifest(tmp_path), "train", data)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000\.arrow is damaged"):
        measure(data, MaskingSettings(), settings)


def test_processes_end_when_the_one_that_started_them_is_killed(folder):
    command = [sys.executable, "-m", "nezha_ds.cli", "bench-loader", str(folder), "--ranks", "2", "--seconds", "3600"]
    with subprocess.Popen(command, cwd=REPOSITORY) as started:
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        reading = wait_for(lambda: [child for child in children.read_text().split() if reads(child)], started)
        started.kill()
    wait_for(lambda: not any(map(reads, reading)))


def reads(process: str) -> bool:
    """Whether a shard is mapped into the process."""
    try:
        return ".arrow" in Path(f"/proc/{process}/maps").read_text()
    except OSError:
        return False


def test_the_command_takes_flags_over_the_recipe_and_tells_json(folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[run]\nfolder = "x"\n[data]\nshards = "elsewhere"\nlength = 64\n[masking]\nmethod = "span"\n')
    options = ["--recipe", str(recipe), "--length", "128", "--ranks", "1", "--seconds", "0.2", "--json"]
    assert cli.main(["bench-loader", str(folder), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shards"], told["length"], told["masking"]) == (str(folder), 128, "span")
    assert [(one["name"], one["rate"]) for one in told["gpus"]] == [(one.name, one.rate) for one in RATES[128]]
    assert len(told["measurements"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to read; name a prepared folder, or a recipe with --recipe"),
        (["no-such-folder"], "no-such-folder has no manifest.json"),
        (["x", "--ranks", "0"], "ranks = 0"),
        (["x", "--masking", "words"], "masking.method = 'words'"),
        (["x", "--set", "data.lenght=64"], "did you mean 'length'"),
        (["--recipe", "no-such.toml"], "no-such.toml cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert cli.main(["bench-loader", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_table_is_shown_with_the_gpus_that_can_be_fed(report, capsys):
    from rich.console import Console

    from nezha_ds.data.bench import show

    show(report, Console(width=100))
    text = capsys.readouterr().out
    assert "1 process" in text and "2 processes" in text
    for stage in STAGES.values():
        assert stage in text
    assert "GPU at 100 sequences/s (--gpu-rate): 2 processes can feed" in text
