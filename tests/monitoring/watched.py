"""A real run under the eyes of a real Prometheus: two nodes of one rank each, fp16, LAMB, two texts, evaluations, saves
and copies of them, a signal after six steps and a second attempt.

The run waits at steps of ours until Prometheus has seen them, so that every counter has grown between two scrapes
however slow the machine is. What is asked is asked about that time, also when it has passed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.errors import Exit
from tests.helpers import ranks, runs
from tests.helpers.processes import wait_for
from tests.helpers.prometheus import Prometheus

SCRIPT = "tests/monitoring/scripts/stepwise_pretrain.py"
SCRAPE = 0.2
"""Seconds from one scrape to the next."""
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 8}, "data_types": {"grad_accum_dtype": "fp32"}}
STEPS = 1000
"""More than are ever made."""
SETTINGS = [
    "train.emulate_fp16=true",
    f"train.steps={STEPS}",
    "train.eval_every=2",
    "train.eval_samples=8",
    "train.save_every=2",
    "data.shards=",
]


@dataclass(frozen=True)
class Watched:
    """The run, the server that has its series, and from when to when they were scraped."""

    run: runs.Run
    server: Prometheus
    begin: float
    end: float

    @property
    def name(self) -> str:
        """What the label `run` says."""
        return self.run.folder.name

    def at_the_end(self, expr: str) -> list[dict[str, Any]]:
        """An expression's results at the end: `metric` and `value`."""
        found = self.server.query_range(expr, self.end, self.end, 1)
        return [{"metric": one["metric"], "value": float(one["values"][0][1])} for one in found]

    def all_along(self, expr: str) -> list[dict[str, Any]]:
        """An expression's results from the begin to the end, in a hundred places: `metric` and `values`."""
        found = self.server.query_range(expr, self.begin, self.end, max((self.end - self.begin) / 100, 0.001))
        return [{"metric": one["metric"], "values": [float(value) for _, value in one["values"]]} for one in found]


def prepare_texts(folder: Path) -> str:
    """Two small texts, prepared within a second: the setting that mixes them."""
    parts = []
    for name, weight, sentence in (("news", 3, "周末七国分争，并入于秦。"), ("law", 1, "公民的人身自由不受侵犯。")):
        text = "\n\n".join(f"第{number}条。{sentence * (number % 7 + 1)}" for number in range(80))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        prepare(
            PrepareSettings(inputs=(str(folder / f"{name}.txt"),), out=folder / name, heldout=0.2, workers=1),
            progress=False,
        )
        parts.append(f'{name} = {{shards = "{folder / name}", weight = {weight}}}')
    return f"data.mixture={{{', '.join(parts)}}}"


def make(folder: Path, copies: str) -> runs.Run:
    """A run on a mixture, which tells Prometheus by `folder`/targets where its nodes are."""
    more = [prepare_texts(folder), f'exporter.targets="{folder / "targets"}"', f'run.copy_to="{copies}"']
    return runs.make(folder, Path("-"), *SETTINGS, *more, **FP16)


@contextmanager
def nodes(run: runs.Run) -> Generator[list["subprocess.Popen[bytes]"]]:
    """Two ranks, each of which takes itself for a node; none lives on."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.free_port()), "ALLOWED": str(_allowed(run))}
    # The processor is told to have no fp16 of its own, so that the same road is gone on every machine.
    shared["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with (run.folder.parent / "log").open("ab") as log, ExitStack() as stack:
        started = [
            subprocess.Popen(
                [sys.executable, SCRIPT, *run.arguments],
                env=ranks.environment() | shared | sizes | {"RANK": str(rank), "GROUP_RANK": str(rank)},
                cwd=ranks.REPOSITORY,
                stdout=log,
                stderr=log,
            )
            for rank in range(2)
        ]
        for process in started:
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield started


def allow(run: runs.Run, steps: int) -> None:
    """Let a run make steps up to this one."""
    allowed = _allowed(run)
    allowed.with_suffix(".new").write_text(str(steps))
    os.replace(allowed.with_suffix(".new"), allowed)  # noqa: PTH105 - a rank reads it at any moment


@contextmanager
def watched(run: runs.Run, server: Prometheus) -> Iterator[Watched]:
    """The run in its second attempt, beyond step 12, and Prometheus, which has seen it all."""
    begin = time()
    allow(run, 0)
    with nodes(run) as first:
        _see(server, first, "count(nezha_run_state)", 14)  # two nodes' states
        _step_by_step(run, server, first, 0, {"max(nezha_train_global_step)": 6})
        step = server.number("max(nezha_train_global_step)")
        first[0].send_signal(signal.SIGTERM)
        allow(run, int(step or 0) + 1)
        assert [process.wait(600) for process in first] == [Exit.STOPPED] * 2
    done = max(run.losses())
    with nodes(run) as second:
        _see(server, second, "max(nezha_run_attempt)", 2)
        _see(server, second, "count(nezha_run_state)", 14)
        wanted = {
            "max(nezha_train_global_step)": done + 5,
            "max(nezha_checkpoint_last_success_step)": done + 1,
            "max(nezha_checkpoint_last_copy_step)": done + 1,
            'max(nezha_eval_last_timestamp_seconds{split="heldout"})': begin,
            'count(ALERTS{alertstate="firing"})': 1,
        }
        _step_by_step(run, server, second, done, wanted)
        yield Watched(run, server, begin, time())


def _see(server: Prometheus, run: list["subprocess.Popen[bytes]"], expr: str, at_least: float) -> None:
    """Wait until Prometheus has such a number."""
    wait_for(lambda: (server.number(expr) or 0) >= at_least, run[0])


def _step_by_step(
    run: runs.Run,
    server: Prometheus,
    processes: list["subprocess.Popen[bytes]"],
    step: int,
    wanted: Mapping[str, float],
) -> None:
    """Let the run go on, a step at a time that Prometheus sees each, until all that is wanted has such numbers.

    What is written in the background is told at the end of a step: so many steps as that takes. The last one is odd: no
    evaluation and no save follows it, so that nothing changes any more when Prometheus has seen it.
    """
    while step % 2 == 0 or any((server.number(expr) or 0) < at_least for expr, at_least in wanted.items()):
        step += 1
        allow(run, step)
        _see(server, processes, "max(nezha_train_global_step)", step)


def _allowed(run: runs.Run) -> Path:
    return run.recipe.with_name("allowed")
