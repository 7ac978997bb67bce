"""An export is the model of the newest sound checkpoint and nothing else, whole or not at all."""

import shutil

import pytest
import safetensors.torch
import torch

from nezha_ds.errors import CheckpointError, LaunchError
from nezha_ds.model.fill_mask import fill_mask
from nezha_ds.model.hf import load_folder
from nezha_ds.train import export as module
from nezha_ds.train.export import export
from tests.train import checkpoints


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run with checkpoints at steps 4 and 8."""
    run = tmp_path_factory.mktemp("export") / "run"
    for step in (4, 8):
        checkpoints.write_checkpoint(run / "checkpoints", step)
    return run


@pytest.fixture
def run(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


def test_it_opens_as_a_model_and_fills_masks(run, tmp_path):
    assert export(run, tmp_path / "deep" / "model").name == "step-00000008"
    out = tmp_path / "deep" / "model"
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    expected = dict(checkpoints.NezhaForPreTraining(checkpoints.CONFIG, seed=8).named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in load_folder(out).named_parameters())
    ((first, *_),) = fill_mask(out, "天下大[MASK]")
    assert 0 < first.probability < 1


def test_a_damaged_newest_checkpoint_is_passed_over(run, tmp_path):
    checkpoints.flip_a_bit(run / "checkpoints" / "step-00000008" / "model.safetensors")
    assert export(run, tmp_path / "model").name == "step-00000004"


def test_an_empty_folder_is_taken(run, tmp_path):
    (tmp_path / "model").mkdir()
    export(run, tmp_path / "model")
    assert load_folder(tmp_path / "model")


def test_a_folder_in_use_is_left_alone(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(LaunchError, match="is not empty; choose another folder, or remove it"):
        export(run, tmp_path)
    with pytest.raises(LaunchError, match="is not empty"):
        export(run, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_runs_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"does not exist; name the run\.folder of a recipe"):
        export(tmp_path / "nothing", tmp_path / "model")
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint yet; let it train"):
        export(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_nothing_is_left_of_an_export_that_fails(run, tmp_path, monkeypatch):
    def full(source, target, **_):
        target.mkdir()
        (target / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copy2", full)
    with pytest.raises(LaunchError, match="No space left on device"):
        export(run, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_below_a_file(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="cannot write"):
        export(run, tmp_path / "file" / "model")


def test_a_run_that_has_diverged_is_not_exported(run, tmp_path):
    step = run / "checkpoints" / "step-00000008"
    weights = safetensors.torch.load_file(step / "model.safetensors")
    weights["cls.predictions.bias"][7] = float("nan")
    safetensors.torch.save_file(weights, step / "model.safetensors")
    checkpoints.sign(step)
    step.rename(step.with_name("step-00000012"))  # it verifies: it was written so
    with pytest.raises(CheckpointError, match=r"step-00000012: cls\.predictions\.bias has 1 numbers that are NaN"):
        export(run, tmp_path / "model")
    assert not [path for path in tmp_path.iterdir() if "model" in path.name]
