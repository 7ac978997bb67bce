"""The prepared text as a run reads it: checked, planned once per node, and cut for this rank."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.data.collate import SpecialIds
from nezha_ds.data.loader import Loader, Stream, build_evaluation, build_loader
from nezha_ds.data.mixture import fingerprint_of, read_manifests, weigh
from nezha_ds.data.plan import load_plan
from nezha_ds.shards import MANIFEST, Manifest, Split, check_folder
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
    manifests: dict[str, Manifest]
    """Of each folder, by its name in the mixture; one that is alone has no name."""
    vocabulary: Vocabulary

    @property
    def fingerprint(self) -> str:
        """The identity of the data, weights included."""
        return fingerprint_of(self.recipe.data, self.manifests)

    @property
    def has_heldout(self) -> bool:
        """Whether there is anything to evaluate on."""
        return any(manifest.of("heldout") for manifest in self.manifests.values())

    def training(self, engine: Engine, first: int) -> Loader:
        """Micro-batches from sample number `first` on."""
        return build_loader(self._stream(engine), global_batch=engine.config.batch.global_batch, first=first)

    def heldout(self, engine: Engine) -> Loader:
        """The samples of one evaluation."""
        return build_evaluation(self._stream(engine), limit=self.recipe.train.eval_samples)

    def tokenizer_files(self, max_length: int) -> dict[str, bytes]:
        """What a model folder needs besides the model, by file name."""
        # All folders have the same tokenizer.
        lowercase = next(iter(self.manifests.values())).tokenizer.lowercase
        return tokenizer_files(self.vocabulary, lowercase, max_length)

    def _stream(self, engine: Engine) -> Stream:
        v = self.vocabulary
        return Stream(
            data=self.recipe.data,
            masking=self.recipe.masking,
            seed=self.recipe.train.seed,
            micro_batch=engine.config.batch.micro_batch,
            world=engine.world,
            special=SpecialIds(pad=v.pad_id, unk=v.unk_id, cls=v.cls_id, sep=v.sep_id, mask=v.mask_id),
            random_ids=replacement_ids(v),
            pin=engine.device.type == "cuda",
        )


def replacement_ids(vocabulary: Vocabulary) -> NDArray[np.int64]:
    """The entries that may stand for a masked token at random: all but [PAD], [MASK], [unused1] and their like."""
    is_text = [not (token.startswith("[") and token.endswith("]") and len(token) > 2) for token in vocabulary.tokens]
    return np.flatnonzero(is_text)


def check_source(recipe: Recipe) -> Source:
    """The prepared text as the recipe names it; DataError when it is not there, not whole, or mixed up."""
    manifests = read_manifests(recipe.data)
    folders = {name: Path(part.shards) for name, part in recipe.data.parts.items()}
    for name, manifest in manifests.items():
        if recipe.data.verify != "never":
            check_folder(folders[name], manifest)
    weigh(recipe.data, manifests, "train")
    vocabularies = [folder_vocabulary(folders[name], manifest) for name, manifest in manifests.items()]
    return Source(recipe, manifests, vocabularies[0])


def open_source(recipe: Recipe, ranks: Ranks) -> Source:
    """The checked source with its plans made, by one rank of a node before the others; collective."""
    source = check_source(recipe)
    if ranks.world.is_node_main:
        for name, manifest in source.manifests.items():
            part = recipe.data.parts[name]
            splits: tuple[Split, ...] = ("train", "heldout") if manifest.of("heldout") else ("train",)
            for split in splits:
                load_plan(Path(part.shards), manifest, split, part, _log_progress)
    ranks.wait()
    return source


def _log_progress(done: int, total: int) -> None:
    if done == total or done % 100 == 0:
        log.info("planned %d of %d shards", done, total)


def prepare_if_missing(recipe: Recipe) -> None:
    """Prepare `run.prepare` into data.shards, where that folder is not complete."""
    shards = Path(recipe.data.shards)
    if recipe.run.prepare and not (shards / MANIFEST).exists():
        log.info("preparing %s into %s", ", ".join(recipe.run.prepare), shards)
        prepare(PrepareSettings(inputs=recipe.run.prepare, out=shards))
