"""The prepared text as a run reads it: checked, planned once per node, and cut for this rank."""

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.data.collate import replacement_ids, special_ids
from nezha_ds.data.dataset import shards_to_open, shelf_of
from nezha_ds.data.loader import Loader, Stream, build_evaluation, build_loader
from nezha_ds.data.mixture import fingerprint_of, read_manifests, weigh
from nezha_ds.data.plan import load_plan
from nezha_ds.remote import is_remote
from nezha_ds.shards import MANIFEST, Manifest, Split
from nezha_ds.text.kinds import KINDS
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

    def training(self, engine: Engine, step: int) -> Loader:
        """Micro-batches of the steps after `step` steps."""
        batch = engine.config.batch
        left, first = batch.schedule.after(step), batch.samples_before(step)
        return build_loader(self._stream(engine), global_batch=left.final, first=first, stages=left.stages)

    def heldout(self, engine: Engine) -> Loader:
        """The samples of one evaluation."""
        return build_evaluation(self._stream(engine), limit=self.recipe.train.eval_samples)

    def tokenizer_files(self, max_length: int) -> dict[str, bytes]:
        """What a model folder needs besides the model, by file name."""
        # All folders have the same tokenizer.
        tokenizer = next(iter(self.manifests.values())).tokenizer
        return KINDS[tokenizer.kind].files(self.vocabulary, tokenizer.lowercase, max_length)

    def _stream(self, engine: Engine) -> Stream:
        return Stream(
            data=self.recipe.data,
            masking=self.recipe.masking,
            seed=self.recipe.train.seed,
            micro_batch=engine.config.batch.micro_batch,
            world=engine.world,
            special=special_ids(self.vocabulary),
            random_ids=replacement_ids(self.vocabulary),
            pin=engine.device.type == "cuda",
        )


def check_source(recipe: Recipe) -> Source:
    """The prepared text as the recipe names it; DataError when it is not there, not whole, or mixed up."""
    manifests = read_manifests(recipe.data)
    shelves = {name: shelf_of(part) for name, part in recipe.data.parts.items()}
    for name, manifest in manifests.items():
        if recipe.data.verify != "never":
            shelves[name].check(manifest)
        shards_to_open(manifest, "train", shelves[name].limit)
    weigh(recipe.data, manifests, "train")
    vocabularies = [folder_vocabulary(shelves[name].folder, manifest) for name, manifest in manifests.items()]
    return Source(recipe, manifests, vocabularies[0])


def open_source(
    recipe: Recipe, ranks: Ranks, planning: Callable[[Callable[[], None]], None] = lambda plan: plan()
) -> Source:
    """The checked source with its plans made, by one rank of a node before the others; collective.

    `planning` calls what makes the plans, and may cut it short.
    """
    source = check_source(recipe)
    if ranks.world.is_node_main:
        planning(lambda: _plan(source))
    ranks.wait()
    return source


def _plan(source: Source) -> None:
    for name, manifest in source.manifests.items():
        part = source.recipe.data.parts[name]
        splits: tuple[Split, ...] = ("train", "heldout") if manifest.of("heldout") else ("train",)
        with closing(shelf_of(part)) as shelf:
            for split in splits:
                load_plan(shelf, manifest, split, part, _log_progress)


def _log_progress(done: int, total: int) -> None:
    # Every twentieth part: the shards of a large corpus take an hour.
    if done == total or done % max(1, total // 20) == 0:
        log.info("planned %d of %d shards", done, total)


def prepare_if_missing(recipe: Recipe) -> None:
    """Prepare `run.prepare` into data.shards, where that folder is not complete."""
    shards = Path(recipe.data.shards)
    if is_remote(recipe.data.shards):
        return
    if recipe.run.prepare and not (shards / MANIFEST).exists():
        log.info("preparing %s into %s", ", ".join(recipe.run.prepare), shards)
        prepare(PrepareSettings(inputs=recipe.run.prepare, out=shards))
