"""The Dockerfile, as far as it can be held without building it, which takes minutes: docker/build_offline.sh does."""

import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from nezha_ds.arguments import parser
from nezha_ds.config import load
from nezha_ds.observe.exporter import ExporterSettings
from nezha_ds.train.recipe import Recipe
from tests.helpers.ranks import REPOSITORY

DOCKERFILE = REPOSITORY / "docker" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


def instructions() -> list[tuple[str, list[str]]]:
    """Instruction and words, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(words[0], words[1:]) for line in joined.splitlines() if (words := shlex.split(line))]


def test_hadolint_has_nothing_to_say():
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_have_something_to_say(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp\n")
    assert subprocess.run([HADOLINT, bad], capture_output=True, check=False).returncode


def test_what_is_copied_is_there_and_not_ignored():
    copied = [
        source for name, words in instructions() if name == "COPY" and words[0][:2] != "--" for source in words[:-1]
    ]
    kept = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(copied) == set(kept)
    assert all((REPOSITORY / source).exists() for source in copied)
    built = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {built["readme"], "LICENSE", "pyproject.toml"} <= set(copied)
    for pattern in built["license-files"]:
        assert any(pattern == path or fnmatch(pattern, f"{path}/*") for path in copied)


def test_both_targets_end_in_the_user_and_share_the_rest():
    stages = {words[2]: words[0] for name, words in instructions() if name == "FROM"}
    assert stages["cpu"] == stages["cuda"] == "run"
    users = [words for name, words in instructions() if name == "USER"]
    assert users == [["10001:10001"]] * 2
    assert re.search(r"--uid 10001\b", DOCKERFILE.read_text())


def test_versions_are_pinned():
    base = next(words[0].removeprefix("BASE=") for name, words in instructions() if name == "ARG")
    assert re.search(r":\d+\.\d+", base)
    constrained = {line.partition("==")[0] for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}
    installs = [words for name, words in instructions() if name == "RUN" and "pip" in words]
    assert len(installs) == 5
    for words in installs:
        assert words[words.index("--constraint") + 1] == "constraints.txt"
        asked = [word for word in words[words.index("install") + 1 :] if word[:2] != "--" and word != "constraints.txt"]
        assert set(asked) - constrained <= {".[clean]"}
    version = next(word for name, words in instructions() if name == "ARG" for word in words if "VERSION" in word)
    assert version == f"VERSION={tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']['version']}"


def test_the_commands_that_it_names_are_understood():
    written = {name: words for name, words in instructions() if name in ("ENTRYPOINT", "CMD", "EXPOSE")}
    assert written["ENTRYPOINT"] == ["[nezha-ds]"]
    assert parser().parse_args([written["CMD"][0].strip("[]")])
    assert written["EXPOSE"] == [str(ExporterSettings().port)]
    comments = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n# ", "")
    examples = re.findall(r"nezha-ds:cpu +(launch .*)$", comments, re.MULTILINE)
    assert examples
    for example in examples:
        launched = parser().parse_args(shlex.split(example))
        given = parser().parse_args(["pretrain", *launched.arguments])
        load(Recipe, REPOSITORY / given.recipe, given.set)
