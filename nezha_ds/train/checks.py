"""Recipes that no run can come of, found before ranks meet: settings that contradict each other, each with the way out.

What a single setting may be is said where it is defined; what a DeepSpeed JSON may be, in ds_config.py.
"""

import shutil

from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import ConfigError
from nezha_ds.model.positions import KINDS
from nezha_ds.objectives import ObjectiveSettings
from nezha_ds.observe.exporter import check_exporter
from nezha_ds.observe.tensorboard import load_tensorboard
from nezha_ds.train.copies import check_uri
from nezha_ds.train.recipe import Recipe
from nezha_ds.world import variable


def check_recipe(recipe: Recipe) -> None:
    """ConfigError for what can be seen to be wrong before ranks meet and a device is touched."""
    check_uri(recipe.run.copy_to)
    check_exporter(recipe.exporter)
    if recipe.run.tensorboard:
        load_tensorboard()
    _check_model(recipe)
    _check_objective(recipe.objective, recipe.data, recipe.masking)
    if recipe.run.prepare and recipe.data.mixture:
        raise ConfigError(
            "run.prepare fills data.shards, and the recipe reads a mixture; prepare its folders with `nezha-ds prepare`"
        )


def _check_model(recipe: Recipe) -> None:
    longest, positions = recipe.model.max_position_embeddings, recipe.model.positions
    if recipe.data.length > longest:
        why = f"positions = {positions!r} end there" if KINDS[positions].bounded else "no weights depend on it"
        raise ConfigError(
            f"data.length {recipe.data.length} is above model.max_position_embeddings {longest}; raise that, {why}"
        )
    if recipe.train.checkpoint_activations > recipe.model.num_hidden_layers:
        raise ConfigError(
            f"train.checkpoint_activations {recipe.train.checkpoint_activations} is above model.num_hidden_layers "
            f"{recipe.model.num_hidden_layers}; set it to that for every block"
        )
    if recipe.train.compile and not shutil.which(compiler := variable("CXX", "g++")):
        raise ConfigError(
            f"train.compile = true needs a C++ compiler, and there is no {compiler} on PATH; install g++, "
            "or set train.compile=false"
        )


def _check_objective(objective: ObjectiveSettings, data: DataSettings, masking: MaskingSettings) -> None:
    """Whether the samples have what the losses need."""
    if objective.nsp and not data.pairs:
        raise ConfigError(
            f"objective.nsp = {objective.nsp} needs samples that are pairs, and data.format {data.format!r} cuts none; "
            "set data.format=segment-pair or objective.nsp=0"
        )
    if objective.nsp and data.pairing == "sentence-order":
        raise ConfigError(
            f"objective.nsp = {objective.nsp} asks whether a segment follows, and with data.pairing "
            f"{data.pairing!r} all do; set data.pairing=next-sentence or objective.nsp=0"
        )
    if objective.sop and data.pairing != "sentence-order":
        raise ConfigError(
            f"objective.sop = {objective.sop} asks which of two segments came first, and with data.pairing "
            f"{data.pairing!r} they always stand in order; set data.format=segment-pair and "
            "data.pairing=sentence-order, or objective.sop=0"
        )
    if objective.span and masking.method != "span":
        raise ConfigError(
            f"objective.span = {objective.span} asks what stands between two tokens, and masking.method "
            f"{masking.method!r} does not tell which; set masking.method=span or objective.span=0"
        )
