"""What is compared with what: three optimizers, a range of batches, and the learning rates of each.

Every model sees the same number of samples; with one seed also the same samples in the same order with the same masks,
whatever its batch. A model differs from another in its optimizer, its batch and its rate, and in nothing else.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nezha_ds.config import build, set_value
from nezha_ds.optim.schedule import square_root_lr
from nezha_ds.train.recipe import Recipe
from tests.study.arms import BASE

LENGTH = 64
"""Tokens in a sample."""
SMALLEST, LARGEST = 8, 512
"""Batches between which the study looks: as far apart as the LAMB paper's 512 and 32,768."""
LARGEST_WARMUP = 0.2
"""Share of the steps at the largest batch; in proportion to the batch below, so that the number of steps stays: the
LAMB paper's 1/320 at 512 to 1/5 at 32,768 (arXiv 1904.00962, table of the untuned BERT)."""
MICRO_BATCH = 64
"""Samples that go through the model together at most. Fastest on a core; the gradients of a step are averaged."""
SWEEP_SEED = 0
"""Of the models by which rates are chosen: none of the table's, which would then be the luckiest of several."""

LAMB, WITHOUT_RATIO, ADAMW = "lamb", "lamb-without-ratio", "adamw"
OPTIMIZERS = {LAMB: "LAMB", WITHOUT_RATIO: "LAMB without the ratio", ADAMW: "AdamW"}
"""Names, and what they are called in tables."""
SWEPT = {LAMB: LAMB, ADAMW: ADAMW, WITHOUT_RATIO: ADAMW}
"""Whose sweep decides an optimizer's base rate. With a ratio of 1 LAMB's update is AdamW's, so both have one rate and
their difference shows whether that is so."""


@dataclass(frozen=True)
class Form:
    """How long, how often, and how wide the rates are searched."""

    name: str
    samples: int
    batches: tuple[int, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    """Learning rates that are tried at the smallest batch."""
    multiples: tuple[float, ...]
    """Of the rule's rate, that are tried at the largest batch."""


FORMS = {
    "full": Form(
        "full",
        samples=24_576,
        batches=(8, 32, 128, 512),
        seeds=(1, 2, 3),
        rates=(0.001, 0.002, 0.004, 0.008, 0.016),
        multiples=(0.25, 0.5, 1.0, 2.0, 4.0),
    ),
    "quick": Form(
        "quick",
        samples=12_288,
        batches=(8, 64, 512),
        seeds=(1, 2),
        rates=(0.001, 0.002, 0.004, 0.008),
        multiples=(0.5, 1.0, 2.0),
    ),
}


@dataclass(frozen=True)
class Point:
    """One model of the study."""

    optimizer: str
    batch: int
    rate: float
    """The peak of the learning rate."""
    seed: int
    samples: int

    @property
    def steps(self) -> int:
        """Updates."""
        return self.samples // self.batch

    @property
    def warmup(self) -> int:
        """Updates until the rate is at its peak."""
        return max(1, round(LARGEST_WARMUP * self.batch / LARGEST * self.steps))

    @property
    def micro_batch(self) -> int:
        """Samples that go through the model together."""
        return min(self.batch, MICRO_BATCH)


def square_root(base: float, batch: int) -> float:
    """The rate at a batch by the package's rule, from that at the smallest."""
    return square_root_lr(base, SMALLEST, batch)


def base_sweep(form: Form) -> list[Point]:
    """The models by which each optimizer's base rate is chosen."""
    return [
        Point(optimizer, SMALLEST, rate, SWEEP_SEED, form.samples)
        for optimizer in dict.fromkeys(SWEPT.values())
        for rate in form.rates
    ]


def table(form: Form, bases: dict[str, float]) -> list[Point]:
    """The models of the comparison: every optimizer at every batch with every seed, rates by the rule."""
    return [
        Point(optimizer, batch, square_root(bases[optimizer], batch), seed, form.samples)
        for seed in form.seeds
        for batch in form.batches
        for optimizer in OPTIMIZERS
    ]


def largest_sweep(form: Form, bases: dict[str, float]) -> list[Point]:
    """The models that tell whether it is the rule or the optimizer that does not carry to the largest batch."""
    return [
        Point(optimizer, LARGEST, multiple * square_root(bases[optimizer], LARGEST), SWEEP_SEED, form.samples)
        for optimizer in dict.fromkeys(SWEPT.values())
        for multiple in form.multiples
    ]


def recipe_of(point: Point, shards: Path) -> Recipe:
    """The recipe of a model: the other study's, at half the width."""
    tree: dict[str, Any] = {name: dict(section) for name, section in BASE.items()}
    changes: dict[str, Any] = {
        "model.hidden_size": 64,
        "model.num_attention_heads": 2,
        "model.intermediate_size": 256,
        "model.max_position_embeddings": LENGTH,
        "data.length": LENGTH,
        # Nothing is written there: the study has a loop of its own.
        "run.folder": "build/study-batch",
        "data.shards": str(shards),
        "train.seed": point.seed,
        "train.steps": point.steps,
    }
    for name, value in changes.items():
        set_value(tree, name.split("."), value)
    return build(Recipe, tree, origin=f"batch {point.batch}")
