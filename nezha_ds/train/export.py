"""A run becomes a folder that opens as a model: the newest checkpoint that verifies, without the optimizer."""

import logging
import shutil
from pathlib import Path

from nezha_ds.errors import CheckpointError, LaunchError
from nezha_ds.files import make_folder, unwritable
from nezha_ds.model.sound import refuse_unsound
from nezha_ds.model.weights import read_weights
from nezha_ds.train.checkpoint import MOMENTS, STATE, newest_sound, read_contents
from nezha_ds.train.folder import CHECKPOINTS
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World

log = logging.getLogger(__name__)


def export(run: Path, out: Path) -> Path:
    """Copy the model of a run's newest sound checkpoint into `out`, whole or not at all; the checkpoint it is of.

    CheckpointError when the run has none, or one whose weights are NaN, LaunchError when `out` is not empty or cannot
    be written.
    """
    if not run.is_dir():
        raise CheckpointError(f"run folder {run} does not exist; name the run.folder of a recipe")
    checkpoint = newest_sound(run / CHECKPOINTS, Ranks(World()))
    if checkpoint is None:
        raise CheckpointError(f"{run} has no checkpoint yet; let it train until train.save_every steps")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LaunchError(f"{out} is not empty; choose another folder, or remove it")
    make_folder(out.parent)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name in read_contents(checkpoint).files:
            if name != STATE and not name.startswith(MOMENTS):
                shutil.copy2(checkpoint / name, temporary / name)
        refuse_unsound(read_weights(temporary), checkpoint)
        temporary.replace(out)
    except CheckpointError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except (OSError, shutil.Error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise unwritable(out, error if error.strerror else OSError(0, str(error))) from None
    return checkpoint
