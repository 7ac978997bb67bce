"""A real run of two attempts, as those see it who only look: TensorBoard, `nezha-ds watch`, `nezha-ds report`."""

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nezha_ds import cli
from nezha_ds.config import load
from nezha_ds.errors import ConfigError
from nezha_ds.observe.events import Record
from nezha_ds.observe.tensorboard import TENSORBOARD
from nezha_ds.show.folder import read_papers
from nezha_ds.train.checks import check_recipe
from nezha_ds.train.recipe import Recipe
from tests.helpers import runs
from tests.helpers.runs import Run


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Run:
    """Six steps, and then six more from the checkpoint at 4, as after a kill that took the one at 6."""
    folder = tmp_path_factory.mktemp("seen")
    first = runs.make(folder, embedded, "run.tensorboard=true", "train.steps=6")
    first.finish()
    for path in sorted(first.checkpoint(6).iterdir()):
        path.unlink()
    first.checkpoint(6).rmdir()
    again = runs.make(folder, embedded, "run.tensorboard=true")
    again.finish()
    return again


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
def test_tensorboard_shows_what_the_journal_tells(seen: Run) -> None:
    reader = EventAccumulator(str(seen.folder / TENSORBOARD), size_guidance={"scalars": 0})
    reader.Reload()
    shown = {one.step: one.value for one in reader.Scalars("train/loss/total")}
    assert list(shown) == list(range(1, 13))
    assert shown == pytest.approx(seen.losses(), rel=1e-6)
    assert sum(isinstance(event, Record) for event in seen.events()) == 14  # two steps were made twice
    assert [one.step for one in reader.Scalars("eval/loss/heldout/total")] == [12]


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
def test_watch_and_report_tell_of_it(seen: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(seen.folder), "--once"]) == 0
    frame = capsys.readouterr().out
    for piece in ("● done", "step 12 of 12", "2 records undone by restarts", "most memory rank 0"):
        assert piece in frame
    out = tmp_path / "report.html"
    assert cli.main(["report", str(seen.folder), "--out", str(out)]) == 0
    html = out.read_text()
    for piece in ("12 of 12", "done (0)", "train.steps", "optimizer.type", "packages.torch", "2 records were undone"):
        assert piece in html
    # Every paper is read under the name under which the run wrote it.
    papers = read_papers(seen.folder / "metrics.jsonl")
    assert all(papers.settings.values())
    assert [end.exit_code for end in papers.attempts] == [0, 0]


def test_looking_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from nezha_ds.cli import main\n"
        f"main(['watch', {str(tmp_path)!r}, '--once'])\n"
        "sys.exit(len({'torch', 'deepspeed', 'pyarrow', 'tensorboard'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_without_tensorboard_a_run_is_refused_before_ranks_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.make(tmp_path, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    check_recipe(load(Recipe, run.recipe, []))
    with pytest.raises(ConfigError, match=r"pip install 'nezha-ds\[tensorboard\]'"):
        check_recipe(load(Recipe, run.recipe, ["run.tensorboard=true"]))
