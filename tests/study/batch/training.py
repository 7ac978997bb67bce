"""One model of the study, from fresh weights to a held-out loss: one process, one thread, no DeepSpeed.

Model, losses, samples, masks, LAMB and schedule are the package's own; a step averages the gradients of its
micro-batches and clips them, as DeepSpeed does. That LAMB is the same on several ranks is shown by tests/train.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.data.collate import replacement_ids, special_ids
from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.objectives import pretraining_losses
from nezha_ds.optim.groups import parameter_groups
from nezha_ds.optim.lamb import Lamb, LambSettings, whole_tensors
from nezha_ds.optim.schedule import Schedule, ScheduleSettings
from nezha_ds.shards import read_manifest
from nezha_ds.text.vocab import Vocabulary
from nezha_ds.train.recipe import Recipe
from nezha_ds.world import World
from tests.study.arms import View
from tests.study.batch.arms import ADAMW, LENGTH, WITHOUT_RATIO, Point, recipe_of
from tests.study.measure import look
from tests.study.pool import Row
from tests.study.training import build_model

CLIP = 1.0
BETAS, EPS, DECAY = (0.9, 0.999), 1e-6, 0.01
"""The same for all three: LAMB's defaults here, and those of BERT's own AdamW."""


@dataclass(frozen=True)
class Result:
    """One trained model, as a row of study-batch.json."""

    optimizer: str
    batch: int
    rate: float
    seed: int
    samples: int
    steps: int
    """Updates that were to be made."""
    warmup: int
    tokens: int
    """Places of all samples but padding."""
    parameters: int
    seconds: float
    """CPU time of the training alone."""
    loss: float | None
    """Held-out, in nats a prediction; none where a loss was not finite, at which the training ends."""
    accuracy: float | None


@dataclass(frozen=True)
class Model:
    """A point as a job of the pool."""

    point: Point
    shards: Path

    @property
    def name(self) -> str:
        """As the pool asks."""
        point = self.point
        return f"{point.optimizer}-{point.batch}-{point.rate:.6g}-{point.seed}"

    @property
    def size(self) -> int:
        """In samples."""
        return self.point.samples

    def fingerprint(self) -> str:
        """Of point, optimizer, text, versions, and what of the recipe the loop uses."""
        used = {"data", "masking", "model", "objective"}
        recipe = recipe_of(self.point, self.shards).model_dump(mode="json", include=used)
        # Where the text lies does not matter; which it is, does.
        recipe["data"]["shards"] = read_manifest(self.shards).fingerprint
        derived = [self.point.warmup, self.point.micro_batch, CLIP, BETAS, EPS, DECAY]
        told = [asdict(self.point), derived, recipe, version("torch")]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def make(self, tick: Callable[[int], None]) -> Row:
        """Train the model and look at it, with one thread."""
        torch.set_num_threads(1)
        return write_result(train(self.point, self.shards, tick))

    def told(self, row: Row) -> str:
        """What came out, and how fast."""
        result = read_result(row)
        loss = "diverged" if result.loss is None else f"held-out loss {result.loss:.3f}"
        return (
            f"{result.optimizer}, batch {result.batch:,}, rate {result.rate:.4g}, seed {result.seed}: {loss}, "
            f"{result.tokens / result.seconds:,.0f} tokens/s"
        )


def read_result(row: Row) -> Result:
    """A row of study-batch.json as a result."""
    return Result(**row)


def write_result(result: Result) -> Row:
    """A result as a row of study-batch.json, rounded to six digits, which is more than it means."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(result).items()}


def train(point: Point, shards: Path, tick: Callable[[int], None]) -> Result:
    """Train one model and ask it for the held-out text, masked alike for all; `tick` is told of samples."""
    recipe = recipe_of(point, shards)
    vocabulary = folder_vocabulary(shards, read_manifest(shards))
    model = build_model(recipe, vocabulary)
    began = time.thread_time()
    tokens, finite = fit(model, point, recipe, vocabulary, tick)
    seconds = time.thread_time() - began
    score = look(model, recipe, vocabulary, View(length=LENGTH))["mlm"] if finite else None
    if score is not None and not math.isfinite(score.loss):
        score = None
    return Result(
        optimizer=point.optimizer,
        batch=point.batch,
        rate=point.rate,
        seed=point.seed,
        samples=point.samples,
        steps=point.steps,
        warmup=point.warmup,
        tokens=tokens,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=seconds,
        loss=None if score is None else score.loss,
        accuracy=None if score is None else score.accuracy,
    )


def fit(
    model: nn.Module, point: Point, recipe: Recipe, vocabulary: Vocabulary, tick: Callable[[int], None]
) -> tuple[int, bool]:
    """Train for the point's samples; the tokens that were seen, and whether every loss was finite."""
    optimizer = make_optimizer(point, model)
    settings = ScheduleSettings(warmup_steps=point.warmup)
    schedule = Schedule(optimizer, settings, "polynomial", point.steps)
    accumulation, tokens = point.batch // point.micro_batch, 0
    with build_loader(stream_of(point, recipe, vocabulary), global_batch=point.batch, first=0) as batches:
        for _ in range(point.steps):
            mean = 0.0
            for _ in range(accumulation):
                batch = next(batches)
                loss = pretraining_losses(model(batch), batch, recipe.objective).total / accumulation
                loss.backward()
                mean += loss.item()
                tokens += int(batch.lengths.sum())
                tick(point.micro_batch)
            if not math.isfinite(mean):
                return tokens, False
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return tokens, True


def make_optimizer(point: Point, model: nn.Module) -> torch.optim.Optimizer:
    """The point's optimizer over whole tensors; biases and LayerNorms do not decay."""
    groups = parameter_groups(model, DECAY)
    if point.optimizer == ADAMW:
        return torch.optim.AdamW(groups, lr=point.rate, betas=BETAS, eps=EPS)
    settings = LambSettings(lr=point.rate, betas=BETAS, eps=EPS, weight_decay=DECAY)
    if point.optimizer == WITHOUT_RATIO:
        settings = settings.model_copy(update={"min_coeff": 1.0, "max_coeff": 1.0})
    optimizer = Lamb(groups, settings)
    tensors = whole_tensors(model.named_parameters())
    optimizer.bind(tensors, len(tensors), None)
    return optimizer


def stream_of(point: Point, recipe: Recipe, vocabulary: Vocabulary) -> Stream:
    """What decides the samples and masks of a model."""
    return Stream(
        data=recipe.data,
        masking=recipe.masking,
        seed=recipe.train.seed,
        micro_batch=point.micro_batch,
        world=World(),
        special=special_ids(vocabulary),
        random_ids=replacement_ids(vocabulary),
    )
