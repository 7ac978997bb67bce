"""Every shipped recipe loads, resolves to a model, and its header's commands are ones that the command line takes."""

import re
import shlex
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from nezha_ds.arguments import parser
from nezha_ds.config import build, load, to_toml
from nezha_ds.data.settings import LONGEST
from nezha_ds.model.config import BERT_CHINESE_VOCABULARY
from nezha_ds.train.ds_config import DeepSpeedConfig, load_ds_config
from nezha_ds.train.recipe import Recipe

REPOSITORY = Path(__file__).parents[1]
PREPARATION = REPOSITORY / "launch" / "recipes" / "prepare-sources.toml"
FOLDER = PREPARATION.parent
RECIPES = sorted({*FOLDER.glob("*.toml")} - {PREPARATION})
TWO_PHASES = [path for path in RECIPES if path.stem not in ("demo", "laptop", "roberta-style")]
PAPERS = [path for path in TWO_PHASES if path.stem not in ("tiny", "small")]
TOKENS_A_CORPUS = 10_536e6
"""Of the paper's three corpora."""
SIZES = {
    *(f"model.{name}" for name in ("preset", "hidden_size", "num_hidden_layers", "num_attention_heads")),
    "model.intermediate_size",
    *(f"train.{name}" for name in ("steps", "eval_every", "save_every")),
}

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
with_two_phases = pytest.mark.parametrize("path", TWO_PHASES, ids=lambda path: path.name)


def header(path: Path) -> str:
    """The comment at the top, without its marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment)


def commands(path: Path) -> list[list[str]]:
    """The indented lines of a header, continued lines joined, as words."""
    joined = header(path).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if re.match(r" {4}(deepspeed|nezha-ds) ", line)]


def phases(path: Path) -> list[Namespace]:
    """What the header's commands for launch/pretrain.py ask for, in their order."""
    found = [words for words in commands(path) if words[0] == "deepspeed"]
    return [parser().parse_args(["pretrain", *words[words.index("launch/pretrain.py") + 1 :]]) for words in found]


def json_of(phase: Namespace) -> DeepSpeedConfig:
    return load_ds_config(REPOSITORY / phase.deepspeed_config, 1)


def leaves(path: Path) -> dict[str, Any]:
    """Every setting of a recipe by its dotted name."""
    sections = load(Recipe, path).model_dump(mode="json")
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def differences(one: str, other: str) -> set[str]:
    """The settings in which two recipes differ, besides where their runs lie."""
    first, second = (leaves(FOLDER / f"{name}.toml") for name in (one, other))
    return {name for name, value in first.items() if second[name] != value} - {"run.folder"}


def test_there_is_a_recipe_for_everyone() -> None:
    named = "nezha-base nezha-base-wwm nezha-base-span nezha-large nezha-large-wwm bert-base roberta-style tiny small"
    assert {path.stem for path in RECIPES} == {*named.split(), "demo", "laptop"}


@each_recipe
def test_it_loads_strictly_and_names_a_model(path: Path) -> None:
    recipe = load(Recipe, path)
    model = recipe.model.resolve(BERT_CHINESE_VOCABULARY)
    assert recipe.data.length <= model.max_position_embeddings <= LONGEST
    assert recipe.train.save_every <= recipe.train.steps
    assert recipe.data.pairs == bool(recipe.objective.nsp)
    assert build(Recipe, tomllib.loads(to_toml(recipe)), "written back") == recipe


@each_recipe
def test_its_commands_are_ones_that_run_this_recipe(path: Path) -> None:
    assert phases(path)
    for phase in phases(path):
        assert path in ((REPOSITORY / phase.recipe).resolve(), FOLDER / "demo.toml")
        load(Recipe, path, phase.set)
        json_of(phase)


@each_recipe
def test_every_other_command_of_its_header_parses(path: Path) -> None:
    for words in commands(path):
        if words[0] == "nezha-ds":
            parser().parse_args(words[1:])


@each_recipe
def test_what_its_header_names_is_there(path: Path) -> None:
    for name in re.findall(r"[\w-]+\.json\b", header(path)):
        assert (REPOSITORY / "ds_configs" / name).exists()
    for name in re.findall(r"[\w-]+\.toml\b", header(path)):
        assert (FOLDER / name).exists()
    overrides = re.findall(r"`--set ([\w.]+=[\w-]+)`", header(path))
    assert load(Recipe, path, overrides) != load(Recipe, path) or not overrides


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "demo"], ids=lambda path: path.name)
def test_its_header_says_what_to_expect_with_the_right_numbers(path: Path) -> None:
    text, recipe = header(path), load(Recipe, path)
    assert re.findall(r"^(\w+)  ", text, re.M) == ["hardware", "batch", "steps", "expect"]
    batch = json_of(phases(path)[0]).batch.global_batch
    tokens = batch * recipe.data.length
    shown = f"{tokens:,}" if tokens < 1e5 else f"{tokens / 1e6:.2f}M"
    assert f"batch     {batch:,} samples of {recipe.data.length} tokens: {shown} tokens a step" in text


@with_two_phases
def test_its_second_phase_goes_on_in_the_same_folder_at_four_times_the_length(path: Path) -> None:
    first, second = phases(path)
    recipes = [load(Recipe, path, phase.set) for phase in (first, second)]
    assert [recipe.data.length for recipe in recipes] == [128, 512]
    changed = {"data.length=512", f"train.steps={round(recipes[0].train.steps * 10 / 9)}"}
    assert set(second.set) - set(first.set) == changed
    # A checkpoint goes on at an unchanged batch only.
    assert json_of(first).batch.global_batch == json_of(second).batch.global_batch
    assert json_of(first).written["optimizer"] == json_of(second).written["optimizer"]
    if path in PAPERS:
        limits = [json_of(phase).written["train_micro_batch_size_per_gpu"] for phase in (first, second)]
        assert limits[0] == 4 * limits[1]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_their_steps_are_ten_times_the_papers_corpora(path: Path) -> None:
    recipe = load(Recipe, path)
    once = round(TOKENS_A_CORPUS / (json_of(phases(path)[0]).batch.global_batch * recipe.data.length))
    assert f"so {once:,} steps see each once" in header(path)
    assert recipe.train.steps == 10 * once


@pytest.mark.parametrize(
    ("one", "other", "settings"),
    [
        ("nezha-base", "nezha-base-wwm", {"masking.method"}),
        ("nezha-base", "nezha-base-span", {"masking.method", "objective.span"}),
        ("nezha-base", "bert-base", {"model.positions"}),
        ("nezha-base", "nezha-large", SIZES),
        ("nezha-large", "nezha-large-wwm", {"masking.method"}),
    ],
)
def test_two_recipes_differ_in_what_their_headers_say_alone(one: str, other: str, settings: set[str]) -> None:
    assert differences(one, other) == settings
