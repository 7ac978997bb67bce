"""One arm with one seed, from fresh weights to a result: one process, one thread, no DeepSpeed.

Model, losses, samples, masks, LAMB and its schedule are the package's own, as a run under DeepSpeed has them; the loop
is the ten lines that are left when there is one rank, one micro-batch a step, and nothing to save in the middle.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.data.collate import replacement_ids, special_ids
from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import pretraining_losses
from nezha_ds.optim.groups import parameter_groups
from nezha_ds.optim.lamb import Lamb, LambSettings, whole_tensors
from nezha_ds.optim.schedule import Schedule, ScheduleSettings
from nezha_ds.shards import read_manifest
from nezha_ds.text.vocab import Vocabulary
from nezha_ds.train.recipe import Recipe
from nezha_ds.world import World
from tests.study.arms import ARMS, BATCH, VIEWS, Form, recipe_of
from tests.study.measure import Score, look

LAMB = LambSettings(lr=0.012)
WARMUP, CLIP = 0.1, 1.0


@dataclass
class Result:
    """One trained model, as a row of study.json."""

    arm: str
    seed: int
    steps: int
    tokens: int
    """Places of all samples but padding."""
    parameters: int
    """Of the model, with all of its heads."""
    seconds: float
    """CPU time of the training alone."""
    views: dict[str, dict[str, Score]]
    """By view, then by head."""


def read_result(row: dict[str, Any]) -> Result:
    """A row of study.json as a result."""
    views = {view: {head: _score(score) for head, score in heads.items()} for view, heads in row["views"].items()}
    return Result(**{**row, "views": views})


def write_result(result: Result) -> dict[str, Any]:
    """A result as a row of study.json, rounded to six digits, which is more than it means."""
    return _rounded(asdict(result))


def train_arm(arm: str, seed: int, form: Form, shards: Path, tick: Callable[[], None]) -> Result:
    """Train one arm with one seed and look at it in every view; `tick` is told of each step."""
    recipe = recipe_of(ARMS[arm], seed, form.steps, shards)
    vocabulary = folder_vocabulary(shards, read_manifest(shards))
    model = build_model(recipe, vocabulary)
    began = time.thread_time()
    tokens = fit(model, recipe, vocabulary, tick)
    seconds = time.thread_time() - began
    return Result(
        arm=arm,
        seed=seed,
        steps=form.steps,
        tokens=tokens,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=seconds,
        views={name: look(model, recipe, vocabulary, view) for name, view in VIEWS.items()},
    )


def build_model(recipe: Recipe, vocabulary: Vocabulary) -> NezhaForPreTraining:
    """Fresh weights from the recipe's seed."""
    config = recipe.model.resolve(len(vocabulary), vocabulary.pad_id, **recipe.objective.heads)
    return NezhaForPreTraining(config, seed=recipe.train.seed)


def fit(model: nn.Module, recipe: Recipe, vocabulary: Vocabulary, tick: Callable[[], None]) -> int:
    """Train for the recipe's steps; the tokens that were seen."""
    optimizer = lamb(model)
    schedule = Schedule(optimizer, ScheduleSettings(warmup_ratio=WARMUP), "polynomial", recipe.train.steps)
    tokens = 0
    with build_loader(_stream(recipe, vocabulary), global_batch=BATCH, first=0) as batches:
        for _ in range(recipe.train.steps):
            batch = next(batches)
            pretraining_losses(model(batch), batch, recipe.objective).total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            tokens += int(batch.lengths.sum())
            tick()
    return tokens


def lamb(model: nn.Module) -> Lamb:
    """The package's LAMB over whole tensors. What an objective does not use has no gradient and stays as it is."""
    optimizer = Lamb(parameter_groups(model, LAMB.weight_decay), LAMB)
    tensors = whole_tensors(model.named_parameters())
    optimizer.bind(tensors, len(tensors), None)
    return optimizer


def _stream(recipe: Recipe, vocabulary: Vocabulary) -> Stream:
    return Stream(
        data=recipe.data,
        masking=recipe.masking,
        seed=recipe.train.seed,
        micro_batch=BATCH,
        world=World(),
        special=special_ids(vocabulary),
        random_ids=replacement_ids(vocabulary),
    )


def _score(score: dict[str, Any]) -> Score:
    # JSON has no numbers for names.
    return Score(**{**score, "recovered": {int(size): counts for size, counts in score["recovered"].items()}})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return round(value, 6) if isinstance(value, float) else value
