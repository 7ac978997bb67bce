"""The recipes for small machines really train, and a run at length 128 really goes on at 512."""

import json
import math
from pathlib import Path

import pytest

from nezha_ds.observe.events import Record
from tests.helpers import runs
from tests.train.small_text import prepare_small

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"
pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("text"))


def small_run(folder: Path, name: str, shards: Path, *settings: str) -> runs.Run:
    """A shipped recipe on four samples a step of a small text; `settings` come after what makes it short."""
    ds_config = folder / "ds_config.json"
    schedule = {"type": "WarmupPolynomialLR", "params": {"warmup_steps": 1}}
    ds_config.write_text(json.dumps({**runs.DEEPSPEED, "train_batch_size": 4, "scheduler": schedule}))
    short = (f"run.folder={folder / 'run'}", "run.prepare=[]", f"data.shards={shards}", "train.eval_samples=4")
    return runs.Run(
        folder / "run", RECIPES / name, ds_config, (*short, "train.log_every=1", "exporter.port=0", *settings)
    )


def rates(run: runs.Run) -> list[float]:
    return [event.learning_rate for event in run.events() if isinstance(event, Record)]


def test_tiny_trains_at_128_and_goes_on_at_512(tmp_path: Path, shards: Path) -> None:
    small_run(tmp_path, "tiny.toml", shards, "train.steps=3").finish()
    second = small_run(tmp_path, "tiny.toml", shards, "train.steps=5", "data.length=512")
    assert "going on from step-00000003" in second.finish()
    losses = second.losses()
    assert list(losses) == [1, 2, 3, 4, 5]
    assert all(map(math.isfinite, losses.values()))
    # Told is the rate of the next update. Linear decay to 0 at step 3, and then as if there had always been five.
    assert rates(second) == pytest.approx([0.01, 0.005, 0, 0.0025, 0])


def test_small_trains(tmp_path: Path, shards: Path) -> None:
    run = small_run(tmp_path, "small.toml", shards, "train.steps=1")
    run.finish()
    # As good as random: the entropy of one token among 21,128.
    assert run.losses()[1] == pytest.approx(math.log(21128), abs=0.5)
