"""`make demo`: the whole road on the shipped text by the commands that a user would type, in ten minutes on 2 cores.

prepare → train with DeepSpeed on two ranks → evaluate → export → look. Every command is printed before it runs. What
came out stands in build/demo/result.json. Stopped in the middle, it goes on from there; once done, it only looks again.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nezha_ds.corpus.inspect import statistics
from nezha_ds.errors import NezhaError
from nezha_ds.observe.events import Evaluation
from nezha_ds.observe.journal import METRICS_FILE, history, read_metrics
from nezha_ds.observe.report import summarise

REPOSITORY = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
DEMO = Path("build/demo")
SHARDS, RUN, MODEL, RESULT = (DEMO / name for name in ("shards", "run", "model", "result.json"))

QUERIES = (
    "孔明[MASK]：“主公勿忧。”",
    "国务院有关[MASK][MASK]按照职责分工负责。",
    "县级以上地方人民[MASK][MASK]应当加强领导。",
    "本法自公布之日起[MASK][MASK]。",
    "话说天下大势，分久必[MASK]，合久必分。",
)

console = Console(soft_wrap=True)


def main() -> int:
    """All stages; the exit code of the first that fails."""
    os.chdir(REPOSITORY)
    # ninja, which compiles DeepSpeed's communication at first use, lies beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
    seconds: dict[str, float] = {}
    try:
        with stage("prepare", seconds):
            run("nezha-ds", "prepare", "embedded", "--out", str(SHARDS))
            run("nezha-ds", "inspect", str(SHARDS), "--samples", "2")
        with stage("train", seconds):
            run("deepspeed", "--num_accelerators", "2", "launch/pretrain.py")
        with stage("export", seconds):
            shutil.rmtree(MODEL, ignore_errors=True)
            run("nezha-ds", "export", str(RUN), str(MODEL))
        with stage("look", seconds):
            for query in QUERIES:
                run("nezha-ds", "fill-mask", str(MODEL), query)
        conclude(seconds)
    except subprocess.CalledProcessError as error:
        console.print(f"[red]{' '.join(error.cmd)} ended with exit code {error.returncode}", markup=True)
        return error.returncode
    except NezhaError as error:
        console.print(f"[red]{error}")
        return error.exit_code
    return 0


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """A heading, and how long it took."""
    console.rule(f"[bold]{name}", align="left")
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 1)


def run(program: str, *arguments: str) -> None:
    """Print a command and run it; CalledProcessError when it fails."""
    console.print(f"[dim]$ {' '.join([program, *arguments])}".replace("[MASK]", r"\[MASK]"))
    subprocess.run([str(PROGRAMS / program), *arguments], check=True)


def conclude(seconds: dict[str, float]) -> None:
    """What was learned, beside the baseline that knows how often each token occurs and nothing else."""
    events = history(read_metrics(RUN / METRICS_FILE))
    evaluations = [event for event in events if isinstance(event, Evaluation) and event.split == "heldout"]
    heldout = evaluations[-1]
    baseline = statistics(SHARDS).unigram_entropy
    result = {
        "heldout_mlm_loss": heldout.losses["mlm"],
        "unigram_entropy": baseline,
        "mlm_accuracy": heldout.mlm_accuracy,
        "tokens_per_second": summarise(events).tokens_per_second,
        # Evaluations are a part of the training stage.
        "seconds": {**seconds, "evaluate": round(sum(event.seconds for event in evaluations), 1)},
        "export": str(MODEL),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"What it learned ({RESULT})", title_justify="left", show_header=False)
    table.add_row("entropy of single tokens (knows only how frequent each is)", f"{baseline:.3f} nats")
    table.add_row("held-out loss of masked tokens", f"{heldout.losses['mlm']:.3f} nats")
    table.add_row("better by", f"[bold]{baseline - heldout.losses['mlm']:.3f} nats")
    table.add_row("masked tokens guessed right", f"{heldout.mlm_accuracy:.1%} of held-out ones")
    table.add_row("speed", f"{result['tokens_per_second']:,.0f} tokens/s")
    console.print(table)
    console.print(f"The model is in {MODEL}; README.md tells how to train on your own text.")


if __name__ == "__main__":
    sys.exit(main())
