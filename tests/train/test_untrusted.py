"""Files from elsewhere: they cannot run code, ask for memory beyond their size, or reach out of their folder."""

import ast
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from nezha_ds.data.plan import load_plan, plan_key
from nezha_ds.data.settings import DataSettings
from nezha_ds.errors import CheckpointError, DataError
from nezha_ds.shards import MANIFEST as SHARDS_MANIFEST
from nezha_ds.shards import open_shard, read_manifest
from nezha_ds.train import checkpoint as module
from nezha_ds.train.checkpoint import MANIFEST, STATE, damage, find_sound, read_state
from nezha_ds.train.export import export
from nezha_ds.train.restore import restore
from tests.train import checkpoints

PACKAGE = Path(module.__file__).parents[1]
MOMENTS = "moments-00000-of-00001.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return checkpoints.write_checkpoint(tmp_path_factory.mktemp("untrusted") / "checkpoints", 4)


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run" / "checkpoints" / written.name)


def load(folder: Path) -> None:
    """What a run does with it."""
    restore(folder, checkpoints.engine(9), read_state(folder))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- no code

EXECUTES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "runpy",
    "code",
}
CALLS = {"eval", "exec", "compile", "__import__"}


def names_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_nothing_in_the_package_loads_what_could_run():
    """Weights of others are read by torch.load, tensors only, with `pickle` for the name of its error; preparation
    passes results between its own processes.
    """
    found = set()
    for path in PACKAGE.rglob("*.py"):
        where = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                )
                found |= {(where, name) for name in modules if name.partition(".")[0] in EXECUTES}
            if isinstance(node, ast.Call):
                name, given = names_of(node), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if name in CALLS or name.startswith("pickle."):
                    found.add((where, name))
                if name == "torch.load" and given.get("weights_only") != "True":
                    found.add((where, name))
                if given.get("allow_pickle", "False") != "False":
                    found.add((where, "allow_pickle"))
    between_processes = {("corpus/executor.py", name) for name in ("pickle", "pickle.dumps", "pickle.loads")}
    assert found == {("model/weights.py", "pickle"), *between_processes}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_the_pickle_of_these_tests_does_run(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def evil_files(path: Path, ran: Path) -> None:
    """The same object as a pickle, as torch saves it, and as numpy does."""
    yield_from = {
        "pickle": lambda: path.write_bytes(pickle.dumps(Evil(ran))),
        "torch": lambda: torch.save({"weight": Evil(ran)}, path),
        "numpy": lambda: (
            path.with_name("evil.npy").rename(path)
            if np.save(path.with_name("evil.npy"), np.array([Evil(ran)], dtype=object), allow_pickle=True) is None
            else None
        ),
    }
    for make in yield_from.values():
        make()
        yield


def test_a_pickle_in_the_place_of_any_file_of_a_checkpoint_runs_nothing(folder, tmp_path):
    ran = tmp_path / "ran"
    for path in sorted(folder.iterdir()):
        before = path.read_bytes()
        for _ in evil_files(path, ran):
            assert damage(folder) != ""
            if path.name != MANIFEST:
                checkpoints.sign(folder)
                assert damage(folder) == ""
                if path.name in (STATE, "model.safetensors", MOMENTS):
                    with pytest.raises(CheckpointError):
                        load(folder)
        path.write_bytes(before)
        checkpoints.sign(folder)
    load(folder)
    assert not ran.exists()


def test_a_pickle_in_the_place_of_any_file_of_the_data_runs_nothing(embedded, tmp_path):
    data, ran = shutil.copytree(embedded, tmp_path / "data"), tmp_path / "ran"
    manifest, settings = read_manifest(data), DataSettings(shards=str(data), length=32)
    entry, size = manifest.of("train")[0], manifest.tokenizer.vocabulary_size
    plan = data / "plans" / f"{plan_key(manifest, 'train', settings)}.npy"
    expected = len(load_plan(data, manifest, "train", settings))
    for _ in evil_files(plan, ran):
        assert len(load_plan(data, manifest, "train", settings)) == expected  # it is built again
    for _ in evil_files(data / entry.name, ran):
        with pytest.raises(DataError):
            open_shard(data, entry, size, verify="never")
    for _ in evil_files(data / SHARDS_MANIFEST, ran):
        with pytest.raises(DataError):
            read_manifest(data)
    assert not ran.exists()


# ------------------------------------------------------------------------------------------------ no memory, no overlap


def test_a_header_that_promises_more_than_the_file_holds_is_refused(folder):
    for name in ("model.safetensors", MOMENTS):
        before = (folder / name).read_bytes()
        huge = b'{"exp_avg/x@0":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
        for data in (struct.pack("<Q", 1 << 60), struct.pack("<Q", len(huge)) + huge, b""):
            (folder / name).write_bytes(data)
            checkpoints.sign(folder)
            with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
                load(folder)
        (folder / name).write_bytes(before)


def test_json_of_any_size_or_depth_is_refused(folder, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_JSON", 1 << 20)
    entries = ",".join(f'"f{n}":{{"bytes":0,"sha256":""}}' for n in range(50_000))
    many = f'{{"files":{{{entries}}}}}'
    for text in (many, '{"files":' + "[" * 500_000, " " * (2 << 20)):
        (folder / MANIFEST).write_text(text)
        assert "has no readable manifest.json" in damage(folder)
    state = (folder / STATE).read_text()
    deep = "[" * 100_000 + "]" * 100_000
    for text in (" " * (2 << 20), state.replace('"counters": {}', f'"counters": {{"updates": {deep}}}')):
        (folder / STATE).write_text(text)
        with pytest.raises(CheckpointError):
            read_state(folder)


WRONG = {
    "longer than the tensor": (lambda t: torch.cat([t, t]), "@0", "ends at .* and the tensor has .* values"),
    "cut short": (lambda t: t[:-1], "@0", "of .* values of exp_avg of"),
    "not from its beginning": (lambda t: t[1:], "@1", "holds 0 of .* values"),
    "beyond its end": (lambda t: t, "@1", "ends at"),
    "below zero": (lambda t: t, "@-1", "is no piece of a moment"),
    "no offset": (lambda t: t, "@first", "is no piece of a moment"),
    "of whole numbers": (lambda t: t.to(torch.int64), "@0", "is no piece of a moment .*I64"),
    "of two axes": (lambda t: t[None], "@0", "is no piece of a moment"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_moments_that_cannot_be_are_named(folder, fault):
    change, offset, expected = WRONG[fault]
    moments = load_file(folder / MOMENTS)
    key = next(key for key in sorted(moments) if key.startswith("exp_avg/") and len(moments[key]) > 8)
    values = moments.pop(key)
    moments[key.rpartition("@")[0] + offset] = change(values).contiguous()
    save_file(moments, folder / MOMENTS)
    checkpoints.sign(folder)
    with pytest.raises(CheckpointError, match=expected):
        load(folder)


def test_moments_that_come_twice_are_not_taken_for_whole(folder):
    """Two halves of the same values have the right number of them."""
    moments = load_file(folder / MOMENTS)
    key = next(key for key in sorted(moments) if key.startswith("exp_avg/") and len(moments[key]) % 2 == 0)
    half = moments.pop(key)[: len(moments) // 2 or 1].clone()
    half = torch.ones(checkpoints.engine(1).values["exp_avg"][key[8:-2]].numel() // 2)
    save_file(moments | {key: half}, folder / MOMENTS)
    save_file({key: half}, folder / "moments-00001-of-00002.safetensors")
    checkpoints.sign(folder)
    with pytest.raises(CheckpointError, match=rf"values from 0 on of exp_avg of {key[8:-2]} come twice"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t[:, :-1].contiguous(), r"has the shape \(21128, 7\) in float32, the model \(21128, 8\) in float32"),
        (lambda t: t.half(), r"in float16, the model \(21128, 8\) in float32"),
        (lambda t: None, r"lacks nezha\.embeddings\.word_embeddings\.weight: it is of another model"),
    ],
)
def test_weights_that_cannot_be_are_named_before_anything_is_loaded(folder, change, expected):
    weights, name = load_file(folder / "model.safetensors"), "nezha.embeddings.word_embeddings.weight"
    changed = change(weights.pop(name))
    save_file(weights | ({} if changed is None else {name: changed}), folder / "model.safetensors")
    checkpoints.sign(folder)
    engine = checkpoints.engine(9)
    before = {name: parameter.clone() for name, parameter in engine.module.named_parameters()}
    with pytest.raises(CheckpointError, match=expected):
        restore(folder, engine, read_state(folder))  # type: ignore[arg-type]
    assert all(torch.equal(before[name], parameter) for name, parameter in engine.module.named_parameters())


def test_a_tensor_too_many_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"nezha.other": torch.ones(3)}, folder / "model.safetensors")
    checkpoints.sign(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors holds nezha\.other: it is of another model"):
        load(folder)


def test_a_compressed_shard_is_no_shard(embedded, tmp_path):
    """Arrow can compress what it writes: a shard of 100 kB could unfold to any size."""
    manifest = read_manifest(embedded)
    entry = manifest.of("train")[0]
    zeros = pa.array(np.zeros(50_000_000, np.uint16))
    lists = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
    batch = pa.record_batch({"tokens": lists})
    with pa.ipc.new_file(
        str(tmp_path / entry.name), batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as f:
        f.write_batch(batch)
    assert (tmp_path / entry.name).stat().st_size < 100_000
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DataError, match="it is compressed, which could unfold to any size"):
        open_shard(tmp_path, entry, manifest.tokenizer.vocabulary_size, verify="never")
    assert pa.default_memory_pool().max_memory() == before


# -------------------------------------------------------------------------------------------- nothing beyond its folder


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "", ".", "deep/er", "config.json/../../secret"])
def test_a_manifest_cannot_name_a_file_elsewhere(folder, name):
    (folder.parent / "secret").write_text("secret")
    text = (folder / MANIFEST).read_text().replace('"config.json"', f'"{name}"')
    (folder / MANIFEST).write_text(text)
    assert "names a file outside its folder" in damage(folder)


@pytest.mark.parametrize("name", ["config.json", STATE, MANIFEST, "model.safetensors", MOMENTS])
def test_a_link_is_no_file_of_a_checkpoint(folder, tmp_path, name):
    target = tmp_path / "elsewhere"
    (folder / name).rename(target)
    (folder / name).symlink_to(target)
    assert damage(folder) != ""
    assert find_sound(folder.parent).folder is None


def test_a_pipe_is_not_waited_for(folder):
    for name in (MANIFEST, STATE):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert damage(folder) != ""
    with pytest.raises(CheckpointError):
        read_state(folder)


def test_what_the_manifest_does_not_name_is_neither_read_nor_exported(folder, tmp_path):
    (folder / "secret").symlink_to("/etc/passwd")
    moments = load_file(folder / MOMENTS)
    save_file({key: values + 1 for key, values in moments.items()}, folder / "moments-00001-of-00002.safetensors")
    engine = checkpoints.engine(9)
    restore(folder, engine, read_state(folder))  # type: ignore[arg-type]
    assert all(
        torch.equal(engine.values["exp_avg"][key[8:-2]], moments[key]) for key in moments if key[:8] == "exp_avg/"
    )
    export(tmp_path / "run", tmp_path / "model")
    assert not {"secret", "moments-00001-of-00002.safetensors"} & {path.name for path in (tmp_path / "model").iterdir()}
