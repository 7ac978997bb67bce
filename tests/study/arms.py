"""What is compared with what, and in which size: arms, forms, views.

An arm is a recipe that differs from the base in what its name says and in nothing else: the same samples in the same
order, as many tokens, one optimizer, one schedule. A form is how long and how often each arm is trained. A view is one
way to look at a trained model: text, masks and length are the same for all models that are looked at in that way.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nezha_ds.config import build, set_value
from nezha_ds.train.recipe import Recipe

LENGTH, LONGER = 64, 256
"""Tokens in a training sample; in a sample of the view that asks what happens beyond it."""
BATCH = 32
"""Samples in a step."""

BASE: dict[str, dict[str, Any]] = {
    "data": {"length": LENGTH},
    "masking": {"method": "whole-word"},
    "model": {
        "preset": "tiny",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": LONGER,
        # Half the length, as NEZHA's 64 at 128.
        "max_relative_position": LENGTH // 2,
        # No sample comes twice.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    label: str
    """For tables and plots."""
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings by dotted name that differ from the base."""


_POSITIONS = {
    "functional-relative": "functional relative (NEZHA's)",
    "functional-relative-unclipped": "functional relative, unclipped",
    "learned-relative": "learned relative",
    "functional-absolute": "functional absolute",
    "learned-absolute": "learned absolute (BERT's)",
}
WORDS, CHARACTERS, SPAN_ALONE, SPAN_BOTH = "functional-relative", "characters", "spans", "spans-objective"
"""The arms of the second and the third question; the first one's base is also the second one's whole words."""

ARMS: dict[str, Arm] = {
    **{
        name: Arm(name, label, {} if name == WORDS else {"model.positions": name}) for name, label in _POSITIONS.items()
    },
    CHARACTERS: Arm(CHARACTERS, "single characters masked", {"masking.method": "character"}),
    SPAN_ALONE: Arm(SPAN_ALONE, "spans masked, MLM alone", {"masking.method": "span"}),
    SPAN_BOTH: Arm(SPAN_BOTH, "spans masked, MLM + span objective", {"masking.method": "span", "objective.span": 1.0}),
}


@dataclass(frozen=True)
class Form:
    """How long and how often."""

    name: str
    steps: int
    seeds: tuple[int, ...]
    arms: tuple[str, ...]

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """Every arm with every seed, seed by seed."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


_MAIN = (WORDS, "learned-absolute", CHARACTERS, SPAN_ALONE, SPAN_BOTH)

FORMS = {
    "full": Form("full", steps=1000, seeds=(1, 2, 3), arms=_MAIN),
    "every-position": Form("every-position", steps=1000, seeds=(1, 2, 3), arms=tuple(ARMS)),
    "quick": Form("quick", steps=700, seeds=(1, 2), arms=_MAIN),
}


@dataclass(frozen=True)
class View:
    """Held-out text as it is shown to a model."""

    length: int = LENGTH
    masking: dict[str, Any] = field(default_factory=dict[str, Any])
    """What differs from the masks that the model was trained with."""
    units: str = ""
    """What counts as recovered when all of it is right: `words` or `runs` of masked tokens; nothing if not given."""


def _all_masked(method: str) -> dict[str, Any]:
    return {"method": method, "mask_share": 1.0, "random_share": 0.0}


VIEWS: dict[str, View] = {
    "as-trained": View(),
    "longer": View(length=LONGER),
    "words": View(masking=_all_masked("whole-word"), units="words"),
    "characters": View(masking=_all_masked("character")),
    "spans": View(masking=_all_masked("span"), units="runs"),
}


def recipe_of(arm: Arm, seed: int, steps: int, shards: Path) -> Recipe:
    """The recipe of one arm with one seed."""
    tree: dict[str, Any] = {name: dict(section) for name, section in BASE.items()}
    for name, value in arm.changes.items():
        set_value(tree, name.split("."), value)
    # Nothing is written there: the study has a loop of its own.
    set_value(tree, ["run", "folder"], "build/study")
    set_value(tree, ["data", "shards"], str(shards))
    set_value(tree, ["train", "seed"], seed)
    set_value(tree, ["train", "steps"], steps)
    return build(Recipe, tree, origin=f"arm {arm.name}")
