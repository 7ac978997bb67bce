"""Ten thousand shards start as fast as ten, a run goes on from any step, and memory does not grow as epochs pass."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nezha_ds.data.plan import load_plan
from nezha_ds.data.settings import DataSettings
from nezha_ds.shards import write_manifest
from tests.bench.harness import REPOSITORY
from tests.data.folders import random_columns, to_columns, write_folder

SHARDS = 10_000
QUICK = 2
"""Seconds of a core: ten times what it takes, and less than to open every shard, or to count the steps before."""
TOLERANCE = 8
"""MiB: what an allocator may need more now than then. A leak of the offsets of 2,500 shards would be 20."""


def feed(folder: Path, first: int, *samples: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.data.feed", str(folder), str(first), *map(str, samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Path, int]:
    """10,000 shards of a thousand documents, which are four in truth; and the samples of their plan."""
    folder = tmp_path_factory.mktemp("many")
    one = to_columns([[[[200 + at % 700, 300, 400]]] for at in range(1000)])
    manifest = write_folder(folder, [one] * 4)
    entries = list(manifest.shards)
    for number in range(len(entries), SHARDS):
        same = entries[number % 4]
        entries.append(same.model_copy(update={"name": f"train-{number:05d}.arrow"}))
        os.link(folder / same.name, folder / entries[number].name)
    manifest = manifest.model_copy(update={"shards": tuple(entries)})
    write_manifest(folder, manifest)
    return folder, len(load_plan(folder, manifest, "train", DataSettings(shards=str(folder))))


def test_ten_thousand_shards_give_their_first_batch_for_little_and_do_not_pile_up(many):
    folder, plan = many
    found = feed(folder, 0, plan // 20, plan // 4)
    assert found["plan"] == plan
    assert found["seconds"] < QUICK
    assert found["anonymous"][1] - found["anonymous"][0] < TOLERANCE


def test_step_a_million_begins_as_soon(many):
    folder, _ = many
    assert feed(folder, 10**6 * 65_536)["seconds"] < QUICK


def test_memory_does_not_grow_over_epochs(tmp_path):
    manifest = write_folder(tmp_path, [random_columns(seed, 2000) for seed in range(4)])
    plan = len(load_plan(tmp_path, manifest, "train", DataSettings(shards=str(tmp_path))))
    after = feed(tmp_path, 0, 10 * plan, 60 * plan)["anonymous"]
    assert after[1] - after[0] < TOLERANCE
