"""A second home for checkpoints, in a real store: what lies there, what a run does without its own, what may fail."""

import os
import secrets
import shutil
import threading

import pytest

from nezha_ds import remote
from nezha_ds.errors import CheckpointError, ConfigError, DataError
from nezha_ds.observe.events import Copy
from nezha_ds.train import copies as module
from nezha_ds.train.checkpoint import agree, damage
from nezha_ds.train.copies import Copier, check_uri, copy, find_anywhere, open_copier
from nezha_ds.train.ranks import Ranks
from nezha_ds.world import World
from tests.helpers import runs, s3
from tests.train import checkpoints

ALONE = Ranks(World())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints at steps 4, 8 and 12."""
    root = tmp_path_factory.mktemp("copied") / "checkpoints"
    for step in (4, 8, 12):
        checkpoints.write_checkpoint(root, step)
    return root


@pytest.fixture
def target(store) -> str:
    """A prefix of the store for this test alone, in a bucket that is there."""
    store.put("runs/ready", b"")
    return f"s3://runs/{secrets.token_hex(8)}"


def listed(target: str) -> list[str]:
    return [file.uri.removeprefix(f"{target}/") for file in remote.list_files(target)]


def object_of(target: str, name: str) -> str:
    return f"{target.removeprefix('s3://')}/{name}"


def test_a_file_is_uploaded_in_parts_and_over_another(store, target, tmp_path):
    for size in (0, 17, 2 * remote.BLOCK + 5):
        data = os.urandom(size)
        (tmp_path / "file").write_bytes(data)
        remote.upload(tmp_path / "file", f"{target}/语 料")
        assert remote.read_bytes(f"{target}/语 料") == data


def test_a_run_goes_on_from_the_copy_when_its_folder_has_none(written, target, tmp_path):
    for step in (4, 8):
        copy(written / f"step-{step:08}", f"{target}/step-{step:08}")
    root = tmp_path / "new" / "checkpoints"
    found = agree(root, ALONE, lambda: find_anywhere(root, target))
    assert found.folder == root / "step-00000008"
    assert found.passed_over == ()
    for path in (written / "step-00000008").iterdir():
        assert (root / "step-00000008" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in root.iterdir()] == ["step-00000008"]


def test_its_own_checkpoint_comes_first(written, target, tmp_path):
    copy(written / "step-00000012", f"{target}/step-00000012")
    root = tmp_path / "checkpoints"
    shutil.copytree(written / "step-00000004", root / "step-00000004")
    assert find_anywhere(root, target).folder == root / "step-00000004"


def test_half_a_copy_is_none_and_a_damaged_one_is_passed_over(written, target, store, tmp_path, caplog):
    for step in (4, 8, 12):
        copy(written / f"step-{step:08}", f"{target}/step-{step:08}")
    store.remove(object_of(target, "step-00000012/manifest.json"))
    store.put(object_of(target, "step-00000008/config.json"), b"{}")
    root = tmp_path / "checkpoints"
    root.mkdir()
    damaged = shutil.copytree(written / "step-00000008", root / "step-00000008")
    checkpoints.flip_a_bit(damaged / "state.json")
    found = find_anywhere(root, target)
    assert found.folder == root / "step-00000004"
    assert len(found.passed_over) == 2
    assert "step-00000008/config.json is missing or cut short; trying the one before it" in caplog.text
    assert damage(root / "step-00000004") == ""


def test_copies_none_of_which_verifies_are_not_a_beginning(written, target, store, tmp_path):
    copy(written / "step-00000004", f"{target}/step-00000004")
    data = bytearray((written / "step-00000004" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    store.put(object_of(target, "step-00000004/model.safetensors"), bytes(data))
    with pytest.raises(CheckpointError, match=r"step-00000004/model\.safetensors is damaged"):
        agree(tmp_path, ALONE, lambda: find_anywhere(tmp_path, target))


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", "deep/er", "", ".."])
def test_a_copy_cannot_name_a_file_elsewhere(written, target, store, tmp_path, name):
    folder = shutil.copytree(written / "step-00000004", tmp_path / "evil" / "step-00000004")
    text = (folder / "manifest.json").read_text().replace('"config.json"', f'"{name}"')
    (folder / "manifest.json").write_text(text)
    for path in folder.iterdir():
        store.put(object_of(target, f"step-00000004/{path.name}"), path.read_bytes())
    root = tmp_path / "a" / "b" / "checkpoints"
    found = find_anywhere(root, target)
    assert found.folder is None
    assert "is missing or cut short" in found.passed_over[0]
    assert not list(tmp_path.rglob("escaped"))


def test_an_empty_store_is_a_beginning_and_one_that_does_not_answer_is_not(target, tmp_path, monkeypatch):
    assert find_anywhere(tmp_path, f"{target}/nothing").folder is None
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with pytest.raises(DataError, match="check AWS_ENDPOINT_URL"):
        find_anywhere(tmp_path, "s3://runs/x?endpoint_override=127.0.0.1:1&scheme=http")


# ------------------------------------------------------------------------------------------------------ while it trains


def test_who_copies_too_slowly_has_the_newest_copied_and_milestones(written, target, monkeypatch, caplog):
    begun, opened, real = threading.Event(), threading.Event(), module.copy

    def gated(folder, uri):
        begun.set()
        opened.wait()
        return real(folder, uri)

    monkeypatch.setattr(module, "copy", gated)
    copier = Copier(target, keep_every=8)
    copier.submit(written / "step-00000012")
    begun.wait()
    for step in (8, 4, 12):
        copier.submit(written / f"step-{step:08}")
    assert copier.in_use() == {written / "step-00000012", written / "step-00000008"}
    assert "step-00000004 is not copied" in caplog.text
    opened.set()
    copier.close()
    assert [(event.step, event.ok) for event in copier.take_told()] == [(12, True), (8, True), (12, True)]
    assert copier.take_told() == []
    assert listed(target)[-1].startswith("step-00000012/")


def test_a_copy_that_fails_is_told_and_ends_nothing(written, target, tmp_path, caplog):
    copier = Copier(target.replace("s3://", f"s3://{s3.STRANGER}:{s3.SECRET}@"))
    copier.submit(written / "step-00000004")
    copier.close()
    (event,) = copier.take_told()
    assert not event.ok
    assert "step-00000004 is not copied: s3://runs/" in caplog.text
    assert "may not be written" in caplog.text


def test_a_store_that_takes_nothing_is_told_at_the_start_while_nothing_is_lost(target, tmp_path, caplog):
    (tmp_path / "recipe.toml").write_text("")
    files, stranger = [tmp_path / "recipe.toml"], target.replace("s3://", f"s3://{s3.STRANGER}:{s3.SECRET}@")
    assert open_copier(target, files, 0, fresh=True, ranks=ALONE)
    assert listed(target) == ["recipe.toml"]
    with pytest.raises(DataError, match="may not be written"):
        open_copier(stranger, files, 0, fresh=True, ranks=ALONE)
    assert open_copier(stranger, files, 0, fresh=False, ranks=ALONE)
    assert "checkpoints may stay without a copy" in caplog.text
    with pytest.raises(ConfigError, match=r"run\.copy_to = '/backup' is no URI"):
        check_uri("/backup")


@pytest.mark.ranks
def test_a_run_that_lost_its_disk_ends_as_if_it_had_not(embedded, target, store, tmp_path, warm):
    run = runs.make(tmp_path, embedded, f"run.copy_to={target}", "train.eval_samples=0", "train.keep_every=4")
    run.finish()
    expected = run.tensors(12)
    assert [event.step for event in run.events() if isinstance(event, Copy) and event.ok] == [4, 8, 12]
    names = {name.partition("/")[0] for name in listed(target)}
    assert names == {"recipe.toml", "ds_config.json", "environment.json", *(f"step-{n:08}" for n in (4, 8, 12))}
    shutil.rmtree(run.folder)
    for name in listed(target):
        if name.startswith("step-00000012/"):
            store.remove(object_of(target, name))
    printed = run.finish()
    assert "bringing step-00000008 from s3://runs/" in printed
    assert "going on from step-00000008" in printed
    assert run.tensors(12) == expected
