"""`make demo-monitoring`: everything comes up, Ctrl-C takes it down, and what is missing is said."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from nezha_ds.errors import Exit
from tests.helpers import ranks, runs
from tests.helpers.processes import wait_for
from tests.monitoring import rules

SCRIPT = "launch/demo_monitoring.py"


def test_without_prometheus_it_says_where_to_get_it(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--folder", tmp_path / "demo"],
        env=ranks.environment() | {"PATH": str(tmp_path)},
        cwd=ranks.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == Exit.REFUSED
    assert done.stdout.startswith("prometheus is not on PATH; `apt-get install prometheus prometheus-alertmanager`")
    assert not [*tmp_path.iterdir()]


@pytest.mark.ranks
def test_ctrl_c_saves_the_run_and_ends_everything(tmp_path, warm, embedded):
    run = runs.make(tmp_path, embedded, "train.steps=1000000", "train.save_every=1000000")
    command = [sys.executable, SCRIPT, "--folder", str(tmp_path / "demo"), "--ranks", "1"]
    command += ["--recipe", str(run.recipe), "--deepspeed_config", str(run.ds_config)]
    command += [part for setting in run.settings for part in ("--set", setting)]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            command, env=ranks.environment(), cwd=ranks.REPOSITORY, stdout=said, stderr=said, start_new_session=True
        )
    try:
        run.folder = tmp_path / "demo" / "run"
        run.wait_for_step(2, process)
        printed = (tmp_path / "said").read_text()
        prometheus = re.search(r"http://127\.0\.0\.1:\d+(?=/targets)", printed)
        assert prometheus
        assert rules_at(prometheus[0]) == {*rules.alerts(), *rules.records()}
        wait_for(lambda: [path.name for path in (tmp_path / "demo/targets").iterdir()] == ["run-node0.json"], process)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(600) == 0
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(600)
    assert json.loads((run.folder / "attempts.jsonl").read_text().split("\n\n")[-1])["exit_code"] == Exit.STOPPED
    assert [*(run.folder / "checkpoints").glob("step-*")]
    assert not [*(tmp_path / "demo/targets").iterdir()]
    wait_for(lambda: not living(tmp_path))


def rules_at(url: str) -> set[str]:
    with urlopen(f"{url}/api/v1/rules", timeout=600) as answer:
        groups = json.load(answer)["data"]["groups"]
    return {rule["name"] for group in groups for rule in group["rules"]}


def living(folder: Path) -> list[str]:
    """Command lines of processes that have to do with the folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if str(folder) in line]
