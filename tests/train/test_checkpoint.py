"""Checkpoints in one process: what verifies, what is kept, and moments that any number of ranks put together again."""

import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nezha_ds.errors import CheckpointError
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import WEIGHTS, hf_name, save_folder
from nezha_ds.train.checkpoint import (
    MANIFEST,
    STATE,
    Contents,
    check_belongs,
    damage,
    newest_sound,
    prune,
    read_state,
    remove_leftovers,
)
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.restore import fill, index_moments, restore
from nezha_ds.world import World
from tests.train import checkpoints

ALONE = Ranks(World())


# -------------------------------------------------------------------------------------------------- moments, cut anyhow

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(lambda n: {f"t{i}.weight": s for i, s in enumerate(n)})


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[dict[str, int], list[int], list[int]]:
    """Tensors, and the cuts of some old and of some new ranks; some ranks hold nothing."""
    tensors = draw(sizes)
    edges = st.lists(st.integers(0, sum(tensors.values())), max_size=6)
    return tensors, draw(edges), draw(edges)


@given(cutting=cuttings())
@settings(max_examples=60)
def test_any_ranks_put_together_what_any_other_ranks_wrote(cutting):
    tensors, old, new = cutting
    total = sum(tensors.values())
    numbers = dict(zip(tensors, torch.arange(1.0, total + 1).split(list(tensors.values())), strict=True))
    values = {"exp_avg": numbers, "exp_avg_sq": {name: -part for name, part in numbers.items()}}
    with tempfile.TemporaryDirectory() as name, ExitStack() as files:
        folder = Path(name)
        checkpoints.write_moments(folder, checkpoints.cut(tensors, old), values)
        stored = index_moments(folder, tensors, files)
        for piece in (piece for rank in checkpoints.cut(tensors, new) for piece in rank):
            for key in checkpoints.KEYS:
                tensor = torch.zeros(piece.numel)
                fill(tensor, piece, stored[f"{key}/{piece.name}"], key)
                assert torch.equal(tensor, values[key][piece.name][piece.offset : piece.offset + piece.numel])


@given(cutting=cuttings(), data=st.data())
@settings(max_examples=20)
def test_a_rank_that_is_missing_is_noticed(cutting, data):
    tensors, old, _ = cutting
    ranks = checkpoints.cut(tensors, old)
    lost = data.draw(st.sampled_from([number for number, slices in enumerate(ranks) if slices]))
    values = {key: {name: torch.ones(size) for name, size in tensors.items()} for key in checkpoints.KEYS}
    piece = ranks[lost][0]
    whole = next(one for rank in checkpoints.cut(tensors, []) for one in rank if one.name == piece.name)
    with tempfile.TemporaryDirectory() as name, ExitStack() as files:
        folder = Path(name)
        checkpoints.write_moments(folder, [*ranks[:lost], [], *ranks[lost + 1 :]], values)
        stored = index_moments(folder, tensors, files).get(f"exp_avg/{piece.name}", [])
        with pytest.raises(CheckpointError, match=rf"of {whole.numel:,} values of exp_avg of {piece.name}.*new run"):
            fill(torch.zeros(whole.numel), whole, stored, "exp_avg")


def test_weights_under_berts_names_come_back_to_the_model(tmp_path):
    """A model with BERT's positions is a BERT for everybody else, its checkpoints too."""
    model = NezhaForPreTraining(checkpoints.CONFIG.model_copy(update={"positions": "learned-absolute"}))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_folder({hf_name(name): weight for name, weight in weights.items()}, model.config, tmp_path)
    assert "bert.embeddings.position_embeddings.weight" in load_file(tmp_path / WEIGHTS)
    found: dict[str, torch.Tensor] = {}
    engine = SimpleNamespace(
        module=model,
        load_weights=found.update,
        make_moments=lambda: None,
        slices=[],
        restore_counters=lambda counters, step: None,
    )
    (tmp_path / MANIFEST).write_text(Contents(files={}).model_dump_json())
    restore(tmp_path, engine, checkpoints.state(4, model.config))  # type: ignore[arg-type]
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


# -------------------------------------------------------------------------------------------------------- what verifies


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints at steps 4, 8 and 12."""
    root = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in (4, 8, 12):
        checkpoints.write_checkpoint(root, step)
    return root


@pytest.fixture
def root(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def test_a_checkpoint_is_the_files_of_its_manifest(written):
    folder = written / "step-00000012"
    assert damage(folder) == ""
    names = set(json.loads((folder / MANIFEST).read_text())["files"])
    assert names == {path.name for path in folder.iterdir()} - {MANIFEST}
    assert {"config.json", "model.safetensors", "moments-00000-of-00001.safetensors", STATE, "vocab.txt"} <= names
    assert read_state(folder) == checkpoints.state(12)
    assert not list(written.glob(".*"))


FAULTS = {
    "flipped": (checkpoints.flip_a_bit, "is damaged"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is missing or cut short"),
    "removed": (Path.unlink, "is missing or cut short"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_file_counts(root, fault):
    break_it, expected = FAULTS[fault]
    folder = root / "step-00000012"
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            before = path.read_bytes()
            break_it(path)
            assert damage(folder) == f"step-00000012/{path.name} {expected}"
            path.write_bytes(before)
    assert damage(folder) == ""


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (None, "has no readable manifest.json"),
        ("{", "has no readable manifest.json"),
        ('{"files": 3}', "has no readable manifest.json"),
        ('{"format": 99, "files": {}}', "has format 99, this version reads 1"),
        ('{"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}', "names a file outside its folder"),
    ],
)
def test_a_manifest_that_is_none(root, manifest, expected):
    folder = root / "step-00000008"
    (folder / MANIFEST).unlink()
    if manifest is not None:
        (folder / MANIFEST).write_text(manifest)
    assert expected in damage(folder)


def test_the_newest_that_verifies_is_taken_and_others_named(root, caplog):
    assert newest_sound(root, ALONE) == root / "step-00000012"
    checkpoints.flip_a_bit(root / "step-00000012" / "model.safetensors")
    assert newest_sound(root, ALONE) == root / "step-00000008"
    assert "step-00000012/model.safetensors is damaged; trying the one before it" in caplog.text
    (root / "step-00000008" / MANIFEST).unlink()
    assert newest_sound(root, ALONE) == root / "step-00000004"


def test_nothing_to_go_on_from_is_not_the_same_as_nothing_sound(root, tmp_path):
    assert newest_sound(tmp_path / "nothing", ALONE) is None
    for folder in root.iterdir():
        checkpoints.flip_a_bit(folder / STATE)
    with pytest.raises(CheckpointError) as caught:
        newest_sound(root, ALONE)
    assert all(f"step-{step:08}/state.json is damaged" in str(caught.value) for step in (4, 8, 12))
    assert "remove the folder to start over" in str(caught.value)


def test_half_written_and_half_removed_folders_are_not_checkpoints(root):
    (root / "step-00000012").rename(root / ".step-00000012.tmp")
    (root / "step-00000008").rename(root / ".step-00000008.old")
    (root / "step-00000099").write_text("a file")
    assert newest_sound(root, ALONE) == root / "step-00000004"


# --------------------------------------------------------------------------------------------------------- what is kept


STEPS = (4, 8, 12, 16, 20)


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [
        (1, 0, [20]),
        (2, 0, [16, 20]),
        (9, 0, [4, 8, 12, 16, 20]),
        (1, 8, [8, 16, 20]),
        (2, 12, [12, 16, 20]),
        (1, 7, [20]),
        (1, 1, [4, 8, 12, 16, 20]),
    ],
)
def test_the_newest_are_kept_and_milestones_for_ever(tmp_path, keep_last, keep_every, left):
    for step in STEPS:
        (tmp_path / f"step-{step:08}").mkdir()
    prune(tmp_path / "step-00000020", keep_last, keep_every)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08}" for step in left]


def test_nothing_goes_that_is_newer_or_in_use(tmp_path):
    """A damaged one beyond where the run went on from is neither counted nor removed, and a copy is let end."""
    for step in STEPS:
        (tmp_path / f"step-{step:08}").mkdir()
    prune(tmp_path / "step-00000012", 1, in_use={tmp_path / "step-00000004"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08}" for step in (4, 12, 16, 20)]


def test_leftovers_of_an_attempt_are_removed_links_too(root, tmp_path):
    (root / "step-00000012").rename(root / ".step-00000012.tmp")
    (root / ".step-00000008.old").symlink_to(root / "step-00000004")
    remove_leftovers(root)
    assert sorted(path.name for path in root.iterdir()) == ["step-00000004", "step-00000008"]
    assert damage(root / "step-00000004") == ""


# --------------------------------------------------------------------------------------------------------- what belongs


def test_its_own_run_may_go_on():
    check_belongs(checkpoints.state(12), checkpoints.state(0), samples=12 * 16)


@pytest.mark.parametrize(
    ("change", "batch", "named"),
    [
        ({"seed": 2}, 16, "train.seed"),
        ({"fingerprint": "0" * 64}, 16, "data.shards or data.mixture"),
        ({"model": checkpoints.CONFIG.model_copy(update={"num_hidden_layers": 2})}, 16, "[model]"),
        ({"model": checkpoints.CONFIG.model_copy(update={"span_form": "nezha"})}, 16, "objective.span, span_form or"),
        ({}, 32, "train_batch_size or batch_warmup"),
    ],
)
def test_another_run_may_not(change, batch, named):
    run = checkpoints.state(0).model_copy(update=change)
    with pytest.raises(CheckpointError) as caught:
        check_belongs(checkpoints.state(12), run, 12 * batch)
    assert f"at step 12 was trained with another {named}" in str(caught.value)
    assert str(caught.value).endswith("; set it back, or choose another run.folder")


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "cannot be read"), ("{}", "written by another version?"), ("", "written by another")]
)
def test_a_state_that_is_none(tmp_path, text, expected):
    if text is not None:
        (tmp_path / STATE).write_text(text)
    with pytest.raises(CheckpointError, match=expected):
        read_state(tmp_path)
