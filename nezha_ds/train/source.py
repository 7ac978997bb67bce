"""The prepared text as a run reads it: checked, planned once per node, and cut for this rank."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.data.collate import SpecialIds
from nezha_ds.data.loader import Loader, build_evaluation, build_loader
from nezha_ds.data.plan import load_plan
from nezha_ds.shards import MANIFEST, Manifest, Split, check_sizes, read_manifest
from nezha_ds.text.tokenizer import tokenizer_files
from nezha_ds.text.vocab import Vocabulary
from nezha_ds.train.engine import Engine
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The prepared text as this run reads it."""

    recipe: Recipe
    manifest: Manifest
    vocabulary: Vocabulary

    @property
    def has_heldout(self) -> bool:
        """Whether there is anything to evaluate on."""
        return bool(self.manifest.of("heldout"))

    def training(self, engine: Engine, first: int) -> Loader:
        """Micro-batches from sample number `first` on."""
        return build_loader(
            self.recipe.data,
            self.recipe.masking,
            global_batch=engine.config.batch.global_batch,
            first=first,
            **self._common(engine),
        )

    def heldout(self, engine: Engine) -> Loader:
        """The samples of one evaluation."""
        return build_evaluation(
            self.recipe.data, self.recipe.masking, limit=self.recipe.train.eval_samples, **self._common(engine)
        )

    def tokenizer_files(self, max_length: int) -> dict[str, bytes]:
        """What a model folder needs besides the model, by file name."""
        return tokenizer_files(self.vocabulary, self.manifest.tokenizer.lowercase, max_length)

    def _common(self, engine: Engine) -> dict[str, Any]:
        v = self.vocabulary
        return {
            "seed": self.recipe.train.seed,
            "micro_batch": engine.config.batch.micro_batch,
            "world": engine.world,
            "special": SpecialIds(pad=v.pad_id, unk=v.unk_id, cls=v.cls_id, sep=v.sep_id, mask=v.mask_id),
            "random_ids": replacement_ids(v),
            "pin": engine.device.type == "cuda",
        }


def replacement_ids(vocabulary: Vocabulary) -> NDArray[np.int64]:
    """The entries that may stand for a masked token at random: all but [PAD], [MASK], [unused1] and their like."""
    is_text = [not (token.startswith("[") and token.endswith("]") and len(token) > 2) for token in vocabulary.tokens]
    return np.flatnonzero(is_text)


def check_source(recipe: Recipe) -> Source:
    """The prepared text as the recipe names it; DataError when it is not there, not whole, or mixed up."""
    folder = Path(recipe.data.shards)
    manifest = read_manifest(folder)
    check_sizes(folder, manifest.shards)
    return Source(recipe, manifest, folder_vocabulary(folder, manifest))


def open_source(recipe: Recipe, ranks: Ranks) -> Source:
    """The checked source with its plans made, by one rank of a node before the others; collective."""
    source = check_source(recipe)
    if ranks.world.is_node_main:
        splits: tuple[Split, ...] = ("train", "heldout") if source.has_heldout else ("train",)
        for split in splits:
            load_plan(Path(recipe.data.shards), source.manifest, split, recipe.data, _log_progress)
    ranks.wait()
    return source


def _log_progress(done: int, total: int) -> None:
    # Every twentieth part: the shards of a large corpus take an hour.
    if done == total or done % max(1, total // 20) == 0:
        log.info("planned %d of %d shards", done, total)


def prepare_if_missing(recipe: Recipe) -> None:
    """Prepare `run.prepare` into data.shards, where that folder is not complete."""
    shards = Path(recipe.data.shards)
    if recipe.run.prepare and not (shards / MANIFEST).exists():
        log.info("preparing %s into %s", ", ".join(recipe.run.prepare), shards)
        prepare(PrepareSettings(inputs=recipe.run.prepare, out=shards))
