"""Every arm with every seed, as jobs of the pool, and the text that they are trained on."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.vocabulary import VocabularySettings, train_vocabulary
from nezha_ds.shards import read_manifest
from tests.study import pool
from tests.study.arms import ARMS, BATCH, VIEWS, Form, recipe_of
from tests.study.pool import Row
from tests.study.training import CLIP, LAMB, WARMUP, Result, read_result, train_arm, write_result

HELDOUT = 0.03
"""Of the documents: 100,000 tokens."""


def prepare_text(folder: Path) -> Path:
    """The shipped novel and statutes as shards, with a vocabulary of their own."""
    vocabulary, shards = folder / "vocab.txt", folder / "shards"
    if not vocabulary.exists():
        train_vocabulary(VocabularySettings(out=vocabulary))
    prepare(PrepareSettings(out=shards, vocabulary=vocabulary, heldout=HELDOUT))
    return shards


@dataclass(frozen=True)
class Model:
    """One arm with one seed."""

    arm: str
    seed: int
    form: Form
    shards: Path

    @property
    def name(self) -> str:
        """As the pool asks."""
        return f"{self.arm}-{self.seed}"

    @property
    def size(self) -> int:
        """In steps."""
        return self.form.steps

    def fingerprint(self) -> str:
        """Of recipe, optimizer, views, text, versions."""
        optimizer = {**LAMB.model_dump(mode="json"), "warmup": WARMUP, "clip": CLIP, "batch": BATCH}
        recipe = recipe_of(ARMS[self.arm], self.seed, self.form.steps, self.shards).model_dump(mode="json")
        # Where the text lies does not matter; which it is, does.
        recipe["data"]["shards"] = read_manifest(self.shards).fingerprint
        views = {name: asdict(view) for name, view in VIEWS.items()}
        told = [recipe, optimizer, views, version("torch")]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def make(self, tick: Callable[[int], None]) -> Row:
        """Train the model and look at it, with one thread."""
        torch.set_num_threads(1)
        return write_result(train_arm(self.arm, self.seed, self.form, self.shards, lambda: tick(1)))

    def told(self, row: Row) -> str:
        """What came out, and how fast."""
        result = read_result(row)
        loss, speed = result.views["as-trained"]["mlm"].loss, result.tokens / result.seconds
        return f"{self.arm}, seed {self.seed}: held-out loss {loss:.3f}, {speed:,.0f} tokens/s"


def finished(arm: str, seed: int, form: Form, shards: Path, folder: Path) -> Result | None:
    """The result that lies in the folder, if it is of this arm, seed, form and text."""
    row = pool.finished(Model(arm, seed, form, shards), folder)
    return None if row is None else read_result(row)


def run(form: Form, shards: Path, folder: Path, console: Console) -> list[Result]:
    """The results of a form, in its order; what lies in the folder already is not made again."""
    jobs = [Model(arm, seed, form, shards) for arm, seed in form.jobs]
    return [read_result(row) for row in pool.run(jobs, folder, console, "steps")]
