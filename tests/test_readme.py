"""The README keeps its word: its commands exist, its files are there, and both languages tell the same."""

import re
import shlex
from pathlib import Path

import pytest

from nezha_ds.arguments import parser

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """The shell commands, without comments, as words."""
    lines = "".join(blocks(name, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("name", READMES)
def test_its_commands_are_understood(name):
    parsed = 0
    for program, *arguments in commands(name):
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif program == "nezha-ds":
            assert parser().parse_args(arguments)
            parsed += 1
        elif program == "deepspeed":
            assert arguments[0] == "launch/pretrain.py"
            given = parser().parse_args(["pretrain", *arguments[1:]])
            assert (ROOT / given.recipe).is_file()
            assert (ROOT / given.deepspeed_config).is_file()
            parsed += 1
    assert parsed >= 5


def test_both_languages_give_the_same_commands_and_code():
    english, chinese = (commands(name) for name in READMES)
    changed = [(one, other) for one, other in zip(english, chinese, strict=True) if one != other]
    assert not changed
    assert blocks(READMES[0], "python") == blocks(READMES[1], "python")


@pytest.mark.parametrize("name", READMES)
def test_what_it_names_is_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    tests = [f"tests/{path}" for path in re.findall(r"`tests/([\w/]+\.py)`", text)]
    missing = [path for path in (*links, *tests) if not (ROOT / path).exists()]
    assert links
    assert tests
    assert not missing


@pytest.mark.parametrize("name", READMES)
def test_its_tree_names_every_room(name):
    tree = (ROOT / name).read_text(encoding="utf-8").partition("```\nnezha_ds/\n")[2].partition("```")[0]
    named = set(re.findall(r"^  (\w+(?:\.py|/))", tree, re.MULTILINE))
    rooms = {path.name + "/" * path.is_dir() for path in (ROOT / "nezha_ds").iterdir() if not path.name.startswith("_")}
    assert named == rooms - {"py.typed"}
