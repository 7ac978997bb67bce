"""Every shipped recipe loads, resolves to a model, and its header's commands are ones that the command line takes."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from nezha_ds.arguments import parser
from nezha_ds.config import build, load, to_toml
from nezha_ds.data.settings import LONGEST
from nezha_ds.model.config import BERT_CHINESE_VOCABULARY
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.recipe import Recipe

REPOSITORY = Path(__file__).parents[1]
PREPARATION = REPOSITORY / "launch" / "recipes" / "prepare-sources.toml"
RECIPES = sorted({*PREPARATION.parent.glob("*.toml")} - {PREPARATION})
TOKENS_A_CORPUS = 10_536e6
"""Of the paper's three corpora."""

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)


def header(path: Path) -> str:
    """The comment at the top, without its marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment)


def commands(path: Path) -> list[list[str]]:
    """The indented lines of a header, continued lines joined, as words."""
    joined = header(path).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if re.match(r" {4}(deepspeed|nezha-ds) ", line)]


def training(path: Path) -> list[str]:
    """The arguments of the header's launch/pretrain.py."""
    (command,) = (words for words in commands(path) if words[0] == "deepspeed")
    return command[command.index("launch/pretrain.py") + 1 :]


@each_recipe
def test_it_loads_strictly_and_names_a_model(path: Path) -> None:
    recipe = load(Recipe, path)
    model = recipe.model.resolve(BERT_CHINESE_VOCABULARY)
    assert recipe.data.length <= model.max_position_embeddings <= LONGEST
    assert recipe.train.save_every <= recipe.train.steps
    assert build(Recipe, tomllib.loads(to_toml(recipe)), "written back") == recipe


@each_recipe
def test_its_command_is_one_that_runs_this_recipe(path: Path) -> None:
    given = parser().parse_args(["pretrain", *training(path)])
    assert (REPOSITORY / given.recipe).resolve() == path
    load(Recipe, path, given.set)
    load_ds_config(REPOSITORY / given.deepspeed_config, 1)


@each_recipe
def test_every_other_command_of_its_header_parses(path: Path) -> None:
    for words in commands(path):
        if words[0] == "nezha-ds":
            parser().parse_args(words[1:])


@pytest.mark.parametrize("path", [path for path in RECIPES if path.name != "demo.toml"], ids=lambda path: path.name)
def test_its_header_says_what_to_expect_with_the_right_numbers(path: Path) -> None:
    text, recipe = header(path), load(Recipe, path)
    assert re.findall(r"^(\w+)  ", text, re.M) == ["hardware", "batch", "steps", "expect"]
    given = parser().parse_args(["pretrain", *training(path)])
    batch = load_ds_config(REPOSITORY / given.deepspeed_config, 1).batch.global_batch
    assert f"batch     {batch:,} samples of {recipe.data.length} tokens" in text
    for name in re.findall(r"[\w-]+\.json", text):
        assert (REPOSITORY / "ds_configs" / name).exists()


@pytest.mark.parametrize("name", ["nezha-base.toml", "nezha-large.toml"])
def test_their_steps_are_ten_times_the_papers_corpora(name: str) -> None:
    path = REPOSITORY / "launch" / "recipes" / name
    given = parser().parse_args(["pretrain", *training(path)])
    batch = load_ds_config(REPOSITORY / given.deepspeed_config, 1).batch.global_batch
    recipe = load(Recipe, path)
    once = round(TOKENS_A_CORPUS / (batch * recipe.data.length))
    assert f"so {once:,} steps see each once" in header(path)
    assert recipe.train.steps == 10 * once
