"""Every arm with every seed, two at a time, each in a process with one thread; stopped at any time, it goes on.

A result is a file of its own, written whole when its model is trained and looked at. It carries a fingerprint of all
that it depends on (recipe, optimizer, views, text, versions), and one whose fingerprint is another is made again.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.vocabulary import VocabularySettings, train_vocabulary
from nezha_ds.files import write_atomically
from nezha_ds.shards import read_manifest
from tests.study.arms import ARMS, BATCH, VIEWS, Form, recipe_of
from tests.study.training import CLIP, LAMB, WARMUP, Result, read_result, train_arm, write_result

HELDOUT = 0.03
"""Of the documents: 100,000 tokens."""
PROCESSES = 2


def prepare_text(folder: Path) -> Path:
    """The shipped novel and statutes as shards, with a vocabulary of their own."""
    vocabulary, shards = folder / "vocab.txt", folder / "shards"
    if not vocabulary.exists():
        train_vocabulary(VocabularySettings(out=vocabulary))
    prepare(PrepareSettings(out=shards, vocabulary=vocabulary, heldout=HELDOUT))
    return shards


def fingerprint(arm: str, seed: int, form: Form, shards: Path) -> str:
    """Of all that decides a result, but not of the code that computes it."""
    optimizer = {**LAMB.model_dump(mode="json"), "warmup": WARMUP, "clip": CLIP, "batch": BATCH}
    recipe = recipe_of(ARMS[arm], seed, form.steps, shards).model_dump(mode="json")
    # Where the text lies does not matter; which it is, does.
    recipe["data"]["shards"] = read_manifest(shards).fingerprint
    views = {name: asdict(view) for name, view in VIEWS.items()}
    told = [recipe, optimizer, views, version("torch")]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def finished(arm: str, seed: int, form: Form, shards: Path, folder: Path) -> Result | None:
    """The result that lies in the folder, if it is of this arm, seed, form and text."""
    path = _path(folder, arm, seed)
    if not path.exists():
        return None
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = written["fingerprint"] == fingerprint(arm, seed, form, shards)
    return read_result(written["result"]) if same else None


def run(form: Form, shards: Path, folder: Path, console: Console) -> list[Result]:
    """The results of a form, in its order; what lies in the folder already is not made again."""
    todo = [job for job in form.jobs if finished(*job, form, shards, folder) is None]
    if len(todo) < len(form.jobs):
        console.print(f"{len(form.jobs) - len(todo)} of {len(form.jobs)} models are there already")
    spawn = multiprocessing.get_context("spawn")
    steps = spawn.Value("q", 0)
    with (
        ProcessPoolExecutor(PROCESSES, spawn, _begin, (steps,)) as pool,
        _bar(console, len(todo) * form.steps) as advance,
    ):
        pending = {pool.submit(_work, *job, form, shards, folder): job for job in todo}
        try:
            while pending:
                done, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                advance(steps.value)
                for future in done:
                    arm, seed = pending.pop(future)
                    result = future.result()
                    loss = result.views["as-trained"]["mlm"].loss
                    speed = result.tokens / result.seconds
                    left = f"{len(pending)} left"
                    console.print(f"{arm}, seed {seed}: held-out loss {loss:.3f}, {speed:,.0f} tokens/s, {left}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = [finished(*job, form, shards, folder) for job in form.jobs]
    return [result for result in results if result is not None]


def _work(arm: str, seed: int, form: Form, shards: Path, folder: Path) -> Result:
    result = train_arm(arm, seed, form, shards, _tick)
    row = {"fingerprint": fingerprint(arm, seed, form, shards), "result": write_result(result)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(_path(folder, arm, seed), json.dumps(row, indent=1) + "\n")
    return result


def _path(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm}-{seed}.json"


_steps: Any = None
"""Of this process: the count of steps that all processes share."""


def _begin(steps: Any) -> None:
    global _steps
    _steps = steps
    torch.set_num_threads(1)


def _tick() -> None:
    if _steps is not None:
        with _steps.get_lock():
            _steps.value += 1


@contextmanager
def _bar(console: Console, total: int) -> "Iterator[Any]":
    """Steps of all models, with the time that is left."""
    columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=total)
        yield lambda completed: progress.update(bar, completed=completed)
