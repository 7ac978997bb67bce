"""A dump is the step: one process computes it again, finds where it breaks, and believes no file it cannot verify."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nezha_ds.cli import main
from nezha_ds.errors import CheckpointError, Exit
from nezha_ds.files import sha256_of
from nezha_ds.model.hf import load_folder
from nezha_ds.train.checkpoint import MANIFEST
from nezha_ds.train.dump import FACTS, KEEP, _commit, read_dump
from nezha_ds.train.replay import by_layer, layer_of, replay
from tests.helpers import runs
from tests.train.checkpoints import flip_a_bit
from tests.train.poison import run_poisoned

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]

WIDEN = "encoder.blocks.1.widen"


def dump_of(folder: Path, shards: Path, poison: str, **deepspeed: Any) -> Path:
    run = runs.make(folder, shards, **deepspeed)
    ((code, text),) = run_poisoned(run, poison)
    assert code == Exit.DIVERGED, text
    (dump,) = (run.folder / "dumps").iterdir()
    return dump


@pytest.fixture(scope="module")
def infinite(tmp_path_factory, embedded, extensions, warm):
    """The dump of a step before which a row of weights became infinite: fp32, ZeRO-1, dropout on."""
    return dump_of(tmp_path_factory.mktemp("infinite"), embedded, "weight:5")


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory, embedded, extensions, warm):
    """The dump of a step with finite losses and gradients beyond fp32: without ZeRO, where DeepSpeed would apply it."""
    folder = tmp_path_factory.mktemp("overflowing")
    return dump_of(folder, embedded, "overflow:3", zero_optimization={"stage": 0})


def edited(dump: Path, folder: Path, name: str, edit: Callable[[Path], Any]) -> Path:
    """A copy with one file changed and the manifest made to fit, as somebody who means ill would."""
    copy = shutil.copytree(dump, folder / dump.name)
    edit(copy / name)
    contents = json.loads((copy / MANIFEST).read_text())
    contents["files"][name] = {"bytes": (copy / name).stat().st_size, "sha256": sha256_of(copy / name)}
    (copy / MANIFEST).write_text(json.dumps(contents))
    return copy


def facts(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensor(name: str, edit: Callable[[torch.Tensor], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = load_file(path)
        edit(tensors[name])
        save_file(tensors, path, metadata={"format": "pt"})

    return change


# -------------------------------------------------------------------------------------------------- what comes out


def test_the_command_finds_where_it_begins(infinite, capsys):
    assert main(["replay", str(infinite), "--device", "cpu"]) == Exit.DONE
    printed = capsys.readouterr().out
    assert "step 5: the loss is nan, and its update is not applied" in printed
    assert f"weights: {WIDEN}.weight held 32 numbers that are NaN or infinite before the step" in printed
    assert printed.count(WIDEN + "\n") == 4  # the first bad module of each micro-batch
    assert printed.endswith("reproduced\n")
    assert "not reproduced" not in printed


def test_losses_and_gradients_come_out_as_they_were(overflowing):
    found = replay(overflowing, "cpu")
    assert found.differences == []
    assert [one.loss for one in found.micro_batches] == pytest.approx(
        [one.told for one in found.micro_batches], rel=1e-6
    )
    assert all(one.begins is None for one in found.micro_batches)
    told, again = by_layer(found.dump.gradients), by_layer(found.gradients)
    assert told == pytest.approx(again, rel=1e-4)
    assert max(told, key=lambda layer: told[layer]) == "encoder.blocks.0"
    assert told["encoder.blocks.0"] > 1e20


def test_the_same_losses_need_the_same_dropout(overflowing, tmp_path):
    """On another kind of device it is drawn anew, and losses are judged accordingly."""
    seed = read_dump(overflowing)[0].seed + 1
    here = replay(edited(overflowing, tmp_path / "here", FACTS, facts(seed=seed)), "cpu")
    assert here.same_draws
    assert any("loss" in line for line in here.differences)
    elsewhere = replay(edited(overflowing, tmp_path / "there", FACTS, facts(seed=seed, device="cuda")), "cpu")
    assert not elsewhere.same_draws
    assert elsewhere.differences == []


def test_other_weights_are_told_apart(infinite, tmp_path, capsys):
    name = "nezha.encoder.layer.1.intermediate.dense.weight"
    mended = edited(infinite, tmp_path, "model.safetensors", tensor(name, lambda found: found[0].zero_()))
    assert main(["replay", str(mended), "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "differs: rank 0, micro-batch 0: loss 9." in printed
    assert printed.endswith("not reproduced: look for it outside weights, text and model\n")


def test_a_dump_opens_as_a_model(overflowing):
    assert load_folder(overflowing).config.hidden_size == 32


def test_layers_are_blocks_and_modules():
    assert layer_of("encoder.blocks.11.attention.query.weight") == "encoder.blocks.11"
    assert layer_of("encoder.embeddings.words.weight") == "encoder.embeddings.words"
    assert layer_of("mlm.bias") == "mlm"


# ------------------------------------------------------------------------------------------------ what is not believed


def test_every_file_is_verified(overflowing, tmp_path):
    dump = shutil.copytree(overflowing, tmp_path / "dump")
    for path in sorted(dump.iterdir()):
        if path.name != MANIFEST:
            before = path.read_bytes()
            flip_a_bit(path)
            with pytest.raises(CheckpointError, match=f"{path.name} is missing, cut short or damaged; copy it again"):
                read_dump(dump)
            path.write_bytes(before)
    assert read_dump(dump)[0].step == 3


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ("{", "has no readable manifest.json; name a folder in RUN/dumps"),
        ('{"files": {}}', "is no dump: its manifest.json names no dump.json"),
        (f'{{"files": {{"{FACTS}": {{"bytes": 1, "sha256": ""}}, "../x": {{"bytes": 1, "sha256": ""}}}}}}', "damaged"),
        (
            f'{{"files": {{"../{FACTS}": {{"bytes": 1, "sha256": ""}}, "{FACTS}": {{"bytes": 1, "sha256": ""}}}}}}',
            "out",
        ),
    ],
)
def test_a_manifest_that_is_none(overflowing, tmp_path, manifest, expected):
    dump = shutil.copytree(overflowing, tmp_path / "dump")
    (dump / MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError, match=expected):
        read_dump(dump)


def test_a_link_is_no_file_of_a_dump(overflowing, tmp_path):
    dump = shutil.copytree(overflowing, tmp_path / "dump")
    (dump / "config.json").rename(tmp_path / "config.json")
    (dump / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="names a file outside its folder"):
        read_dump(dump)


BATCHES = "batches-00000-of-00001.safetensors"


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        (BATCHES, tensor("0/input_ids", lambda ids: ids.fill_(10**9)), "input_ids goes beyond 0 to 21127"),
        (BATCHES, tensor("1/mlm_positions", lambda places: places.fill_(-1)), "mlm_positions goes beyond 0 to 31"),
        (
            BATCHES,
            lambda path: save_file({"7/input_ids": torch.zeros(1, 2, dtype=torch.int64)}, path),
            "no micro-batch",
        ),
        (BATCHES, lambda path: save_file({"0/input_ids": torch.zeros(1, 2, dtype=torch.int64)}, path), "that are none"),
        (BATCHES, lambda path: path.write_bytes(b"\x80\x04K\x01."), "cannot be read"),
        (FACTS, facts(format=2), "has format 2, this version reads 1"),
        (FACTS, facts(step="five"), "cannot be read"),
        (FACTS, facts(shares=[]), "other losses than factors"),
        ("model.safetensors", lambda path: save_file({"x": torch.zeros(1)}, path), "has no nezha.embeddings"),
    ],
)
def test_what_cannot_be_of_the_step_is_refused(overflowing, tmp_path, file, edit, expected):
    with pytest.raises(CheckpointError, match=expected):
        replay(edited(overflowing, tmp_path, file, edit), "cpu")


def test_a_config_that_asks_for_more_than_the_weights_is_refused(overflowing, tmp_path):
    """Before anything of that size is made."""
    model = json.loads((overflowing / FACTS).read_text())["model"] | {"vocab_size": 10**12}
    with pytest.raises(CheckpointError, match="says vocab_size = 1000000000000 and"):
        replay(edited(overflowing, tmp_path, FACTS, facts(model=model)), "cpu")


# --------------------------------------------------------------------------------------------------- what is kept


def test_the_newest_dumps_are_kept_and_one_a_step(tmp_path):
    for step in (3, 12, 7, 12, 20):
        temporary = tmp_path / f".step-{step:08}.tmp"
        temporary.mkdir()
        (temporary / "x").write_text(str(step))
        _commit(temporary, tmp_path / f"step-{step:08}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08}" for step in (7, 12, 20)]
    assert KEEP == 3
