"""The run folder: what is written once, at the beginning and at the end."""

import json
import logging
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nezha_ds.config import to_toml
from nezha_ds.errors import LaunchError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.observe.journal import METRICS_FILE, read_metrics
from nezha_ds.observe.layout import DS_CONFIG, ENVIRONMENT, RECIPE
from nezha_ds.observe.report import Summary, summarise
from nezha_ds.train.ds_config import DeepSpeedConfig
from nezha_ds.train.recipe import Recipe
from nezha_ds.world import World

CHECKPOINTS, DUMPS = "checkpoints", "dumps"
SUMMARY = "summary.json"
PACKAGES = ("nezha-ds", "deepspeed", "torch", "numpy", "pyarrow", "tokenizers", "rjieba", "jieba")

log = logging.getLogger(__name__)


def open_folder(recipe: Recipe, ds_config: DeepSpeedConfig, parameters: int, world: World) -> None:
    """Write down what this run is, and see that its checkpoints will have room; LaunchError when they have not."""
    folder = make_folder(recipe.run.folder)
    log.info("run folder %s", folder.resolve())
    write_atomically(folder / RECIPE, to_toml(recipe))
    write_atomically(folder / DS_CONFIG, json.dumps(ds_config.written, indent=2) + "\n")
    write_atomically(folder / ENVIRONMENT, json.dumps(_environment(world), indent=2) + "\n")
    _check_space(folder, parameters, recipe.train.keep_last + 1)


def conclude(folder: Path) -> Summary:
    """Sum the journal up, in summary.json too."""
    summary = summarise(read_metrics(folder / METRICS_FILE))
    write_atomically(folder / SUMMARY, json.dumps(asdict(summary), indent=2) + "\n")
    return summary


def _check_space(folder: Path, parameters: int, checkpoints: int) -> None:
    # fp32 weights and two moments; one more checkpoint than is kept while one is replaced.
    needed, free = 12 * parameters * checkpoints, shutil.disk_usage(folder).free
    if free < needed:
        raise LaunchError(
            f"{folder} has {free / 1e9:.1f} GB free, {checkpoints} checkpoints of {parameters / 1e6:.0f}M parameters "
            f"need {needed / 1e9:.1f} GB; free space, choose another run.folder, or lower train.keep_last"
        )


def _environment(world: World) -> dict[str, Any]:
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "world_size": world.world_size,
        "revision": _git("rev-parse", "HEAD"),
        "changes": _git("diff", "HEAD", "--", "."),
    }


def _git(*arguments: str) -> str:
    """What git says of the code that runs; nothing outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
