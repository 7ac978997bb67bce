"""Two phases: what a run that begins from another takes over, what it begins anew, and what it refuses."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nezha_ds.config import load
from nezha_ds.errors import CheckpointError
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import load_folder
from nezha_ds.objectives import pretraining_losses
from nezha_ds.observe.events import Record, Start
from nezha_ds.train.checkpoint import read_state
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.initial import (
    begin_from,
    check_parent,
    find_checkpoint,
    refuse_other_model,
    refuse_other_vocabulary,
)
from nezha_ds.train.meter import LossMeter
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import Recipe
from nezha_ds.train.source import check_source
from nezha_ds.world import World
from tests.helpers import runs
from tests.train import checkpoints

ALONE = Ranks(World())
DROPOUT = ("model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0")
SECOND = (*DROPOUT, "data.length=64", "data.format=segment-pair", "objective.nsp=1.0", "train.save_every=3")


@dataclass
class SecondRun(runs.Run):
    """A run with --init-from."""

    origin: Path = Path()

    @property
    def arguments(self) -> list[str]:
        return [*super().arguments, "--init-from", str(self.origin)]


def second_run(folder: Path, embedded: Path, origin: Path, steps: int) -> SecondRun:
    """Length 64 instead of 32, batch 8 instead of 16, LAMB instead of AdamW, no ZeRO, and next sentences too."""
    run = runs.make(
        folder, embedded, *SECOND, f"train.steps={steps}", train_batch_size=8, zero_optimization={"stage": 0}
    )
    return SecondRun(run.folder, run.recipe, run.ds_config, run.settings, origin=origin)


def moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every moment whole, put together from the ranks' slices."""
    pieces = [pair for path in checkpoint.glob("moments-*") for pair in load_file(path).items()]
    pieces = sorted((key.rpartition("@")[0], int(key.rpartition("@")[2]), piece.reshape(-1)) for key, piece in pieces)
    names = {name for name, _, _ in pieces}
    return {name: torch.cat([piece for other, _, piece in pieces if other == name]) for name in names}


def state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, embedded: Path, extensions: Path) -> runs.Run:
    """Four steps on two ranks under ZeRO-1, with torch's AdamW."""
    adamw = {"type": "AdamW", "params": {"lr": 0.001, "torch_adam": True}}
    run = runs.make(
        tmp_path_factory.mktemp("first"), embedded, *DROPOUT, "train.steps=4", "run.prepare=[]", optimizer=adamw
    )
    run.finish(world_size=2)
    return run


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, embedded: Path, first: runs.Run) -> SecondRun:
    """Three steps on one rank."""
    run = second_run(tmp_path_factory.mktemp("second"), embedded, first.folder, steps=3)
    printed = run.finish()
    assert "beginning from" in printed
    assert "heads that begin afresh" in printed
    return run


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
class TestTwoPhases:
    def test_moments_and_weights_are_the_first_runs_bit_by_bit(self, first: runs.Run, second: SecondRun) -> None:
        theirs, ours = moments(first.checkpoint(4)), moments(second.checkpoint(0))
        assert len(theirs) > 40
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
        # What the first run did not train has moments of zero.
        heads = ours.keys() - theirs.keys()
        assert {name.partition("/")[2].rpartition(".")[0] for name in heads} == {"encoder.pooler", "nsp"}
        assert not any(ours[name].any() for name in heads)
        weights = [load_file(run / "model.safetensors") for run in (first.checkpoint(4), second.checkpoint(0))]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())

    def test_its_first_loss_is_that_of_the_first_runs_weights(self, first: runs.Run, second: SecondRun) -> None:
        recipe = load(Recipe, second.recipe, second.settings)
        config = load_ds_config(second.ds_config, 1)
        stand_in = SimpleNamespace(config=config, world=World(), device=torch.device("cpu"))
        model, meter = load_folder(first.checkpoint(4)), LossMeter(recipe.objective)
        with check_source(recipe).training(stand_in, 0) as batches, torch.no_grad():  # type: ignore[arg-type]
            for _ in range(config.batch.accumulation):
                batch = next(batches)
                meter.add(pretraining_losses(model(batch), batch, recipe.objective))
        expected = meter.take(ALONE)
        record = next(event for event in second.events() if isinstance(event, Record))
        assert record.step == 1
        assert record.losses == pytest.approx(expected.losses, abs=2e-5)

    def test_step_schedule_and_samples_restart_and_updates_go_on(self, first: runs.Run, second: SecondRun) -> None:
        begun, done = state(second.checkpoint(0)), state(second.checkpoint(3))
        assert (begun["step"], begun["samples"]) == (0, 0)
        assert (done["step"], done["samples"]) == (3, 24)
        assert state(first.checkpoint(4))["counters"]["updates"] == begun["counters"]["updates"] == 4
        assert done["counters"]["updates"] == 7
        assert (begun["counters"]["schedule"], done["counters"]["schedule"]) == ({"done": 0}, {"done": 3})
        records = [event for event in second.events() if isinstance(event, Record)]
        assert [record.learning_rate for record in records] == pytest.approx([0.02 / 3, 0.01, 0.01])

    def test_it_says_where_it_comes_from(self, first: runs.Run, second: SecondRun) -> None:
        for step in (0, 3):
            assert state(second.checkpoint(step))["parent"] == {
                "run": str(first.folder.resolve()),
                "checkpoint": "step-00000004",
                "step": 4,
                "samples": 64,
            }
        starts = [event.parent for event in second.events() if isinstance(event, Start)]
        assert starts[0] == f"{first.folder.resolve()} step-00000004"
        assert f'init_from = "{first.folder}"' in (second.folder / "recipe.toml").read_text()

    def test_it_goes_on_from_its_own_checkpoints(
        self, second: SecondRun, first: runs.Run, tmp_path: Path, embedded: Path
    ) -> None:
        """The same command again, when the first run's checkpoints are gone; the newest of its own is damaged."""
        again = second_run(tmp_path, embedded, first.folder, steps=3)
        shutil.copytree(second.folder, again.folder)
        checkpoints.flip_a_bit(again.checkpoint(3) / "model.safetensors")
        hidden = first.folder.with_name("hidden")
        first.folder.rename(hidden)
        try:
            assert "going on from step-00000000" in again.finish()
        finally:
            hidden.rename(first.folder)
        assert again.tensors(3) == second.tensors(3)
        assert state(again.checkpoint(3))["parent"] == state(second.checkpoint(3))["parent"]


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 4 and 8."""
    folder = tmp_path_factory.mktemp("origin")
    for step in (4, 8):
        checkpoints.write_checkpoint(folder / "checkpoints", step)
    return folder


def test_the_newest_sound_checkpoint_of_a_run_or_the_one_that_is_named(origin: Path, tmp_path: Path) -> None:
    root = shutil.copytree(origin, tmp_path / "run") / "checkpoints"
    assert find_checkpoint(tmp_path / "run", ALONE) == root / "step-00000008"
    assert find_checkpoint(root / "step-00000004", ALONE) == root / "step-00000004"
    checkpoints.flip_a_bit(root / "step-00000008" / "model.safetensors")
    assert find_checkpoint(tmp_path / "run", ALONE) == root / "step-00000004"
    with pytest.raises(CheckpointError, match=r"step-00000008/model.safetensors is damaged; choose another checkpoint"):
        find_checkpoint(root / "step-00000008", ALONE)
    checkpoints.flip_a_bit(root / "step-00000004" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* verifies"):
        find_checkpoint(tmp_path / "run", ALONE)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            CheckpointError, match=r"has no checkpoint; name the run.folder of a run that has saved one"
        ):
            find_checkpoint(folder, ALONE)


def test_a_head_that_the_weights_lack_begins_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sentence order, where the first run had no such head; and the same samples again are told."""
    config, plain = checkpoints.CONFIG.model_copy(update={"sentence_order": True}), checkpoints.state
    monkeypatch.setattr(checkpoints, "state", lambda step: plain(step).model_copy(update={"counters": {"updates": 7}}))
    folder = checkpoints.write_checkpoint(tmp_path / "checkpoints", 4)
    model, found, counters = NezhaForPreTraining(config, seed=9), {}, {}
    engine = SimpleNamespace(
        module=model,
        load_weights=found.update,
        make_moments=lambda: None,
        slices=[],
        counters=lambda: {"updates": 0, "skipped_steps": 0, "schedule": {"done": 0}},
        restore_counters=lambda told, step: counters.update(told, step=step),
    )
    caplog.set_level("INFO")
    files = {"vocab.txt": (folder / "vocab.txt").read_bytes()}
    begun = begin_from(tmp_path, engine, plain(0, config), files, ALONE)  # type: ignore[arg-type]
    theirs, own = dict(load_folder(folder).named_parameters()), dict(model.named_parameters())
    assert found.keys() == own.keys() == theirs.keys() | {"sop.weight", "sop.bias"}
    assert all(torch.equal(found[name], theirs.get(name, own[name])) for name in own)
    assert counters == {"updates": 7, "skipped_steps": 0, "schedule": {"done": 0}, "step": 0}
    assert begun.parent is not None
    assert (begun.parent.checkpoint, begun.parent.step, begun.step) == ("step-00000004", 4, 0)
    assert f"heads that begin afresh, as {tmp_path} did not train them: sop" in caplog.text
    assert "the same samples with the same masks again" in caplog.text


FREE = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "attention": "reference",
    "initializer_range": 0.1,
    "span_form": "nezha",
    "sentence_order": True,
    "preset": "base",
}
BOUND = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "hidden_act": "gelu_tanh",
    "max_relative_position": 8,
    "norm": "pre",
    "positions": "learned-absolute",
    "layer_norm_eps": 1e-5,
}


@pytest.mark.parametrize("name", FREE)
def test_what_leaves_the_tensors_as_they_are_is_free(name: str) -> None:
    ours = checkpoints.CONFIG.model_copy(update={name: FREE[name]})
    assert ours != checkpoints.CONFIG
    refuse_other_model(Path("first"), checkpoints.CONFIG, ours)


@pytest.mark.parametrize("name", BOUND)
def test_another_model_is_refused(name: str) -> None:
    ours = checkpoints.CONFIG.model_copy(update={name: BOUND[name]})
    with pytest.raises(CheckpointError) as caught:
        refuse_other_model(Path("first"), checkpoints.CONFIG, ours)
    theirs = getattr(checkpoints.CONFIG, name)
    expected = f"--init-from first: its model has {name} = {theirs!r}, this run's {BOUND[name]!r}; set model.{name}"
    assert str(caught.value).startswith(expected)


def test_learned_absolute_positions_are_rows(tmp_path: Path) -> None:
    theirs = checkpoints.CONFIG.model_copy(update={"positions": "learned-absolute"})
    with pytest.raises(CheckpointError, match="its model has max_position_embeddings = 64, this run's 128"):
        refuse_other_model(Path("first"), theirs, theirs.model_copy(update={"max_position_embeddings": 128}))


def test_another_vocabulary_is_refused(origin: Path) -> None:
    folder = origin / "checkpoints" / "step-00000008"
    own = (folder / "vocab.txt").read_bytes()
    refuse_other_vocabulary(folder, {"vocab.txt": own})
    for files, name in (({"vocab.txt": own + b"x\n"}, "vocab.txt"), ({"tokenizer.json": b"{}"}, "tokenizer.json")):
        with pytest.raises(CheckpointError, match=f"its {name} is not that of this run's text; prepare the text with"):
            refuse_other_vocabulary(folder, files)


def test_a_run_that_has_begun_cannot_begin_from_elsewhere(origin: Path, tmp_path: Path) -> None:
    own = read_state(origin / "checkpoints" / "step-00000008")
    check_parent(own, None, tmp_path)
    with pytest.raises(CheckpointError, match=r"has begun already, with weights of its own, and cannot begin from"):
        check_parent(own, origin, tmp_path)
    parent = {"run": str(origin), "checkpoint": "step-00000008", "step": 8, "samples": 128}
    child = type(own).model_validate(own.model_dump() | {"parent": parent})
    check_parent(child, None, tmp_path)
    check_parent(child, origin / "checkpoints" / "..", tmp_path)
    with pytest.raises(CheckpointError, match=r"has begun already, from .*origin.*, and cannot begin from"):
        check_parent(child, tmp_path, tmp_path)
