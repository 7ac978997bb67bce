"""The command line of `nezha-ds doctor --cluster` as one rank's request, and rank 0's answer."""

import argparse
import json
import sys
from pathlib import Path

from nezha_ds.config import load
from nezha_ds.errors import LaunchError
from nezha_ds.observe.log import set_up_logging
from nezha_ds.train.cluster.examine import Request, examine_cluster
from nezha_ds.train.cluster.table import show, to_dict
from nezha_ds.train.cluster.verdict import Limits, Verdict
from nezha_ds.train.orphan import stop_with_launcher
from nezha_ds.world import find_world, under_launcher


def doctor_cluster(given: argparse.Namespace) -> int:
    """Take part as the rank that the launcher made of this process; the exit code."""
    if not under_launcher():
        raise LaunchError(
            "doctor --cluster is run by every rank, and no launcher started this process as one; in a Slurm job say "
            "`srun nezha-ds doctor --cluster`, elsewhere `nezha-ds launch --ranks 8 --doctor` on each node"
        )
    world = find_world()
    set_up_logging(world)
    stop_with_launcher()
    recipe = None
    if given.recipe:
        # Only then: what a recipe knows of models takes a second more to import.
        from nezha_ds.train.recipe import Recipe

        recipe = load(Recipe, given.recipe, given.set)
    folder = given.folder or (recipe.run.folder if recipe else Path())
    request = Request(folder, recipe, given.wait, given.limit, int(given.size * 1e6), Limits(slow=given.slow))
    return examine_cluster(request, world, _print_json if given.json else show)


def _print_json(verdict: Verdict) -> None:
    json.dump(to_dict(verdict), sys.stdout, ensure_ascii=False, indent=1)
    sys.stdout.write("\n")
