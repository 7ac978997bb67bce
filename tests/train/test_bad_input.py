"""Every bad input gets one line with the value, the reason and the way out, and exit code 2, through the command line.

In this process wherever ranks need not meet; what only shows beside a running engine is a process of its own.
"""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nezha_ds import cli
from nezha_ds.config import load
from nezha_ds.corpus import prepare as prepare_module
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.data.plan import load_plan
from nezha_ds.data.settings import DataSettings
from nezha_ds.errors import ConfigError
from nezha_ds.shards import SourceEntry, read_manifest, write_manifest
from nezha_ds.train import folder as folder_module
from nezha_ds.train import run as run_module
from nezha_ds.train.checks import check_recipe
from nezha_ds.train.engine import AcceleratorInfo
from nezha_ds.train.preempt import StopFlag
from nezha_ds.train.recipe import Recipe
from tests.helpers import runs
from tests.train import checkpoints
from tests.train.small_text import TEXT, prepare_small, swap_two_entries


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def shards(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "shards")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder with one checkpoint."""
    run = tmp_path_factory.mktemp("trained") / "run"
    checkpoints.write_checkpoint(run / "checkpoints", 4)
    return run


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> Iterator[None]:
    """One rank that meets nobody, and leaves pytest its signals."""
    monkeypatch.setattr(run_module, "join_ranks", lambda world: None)
    monkeypatch.setattr(run_module, "leave_ranks", lambda: None)
    # The flag is for good: pytest would note signals and stop for none, and what it starts would have them blocked.
    quiet = {"signal": 0, "_interrupts": 0, "_cutting": False, "_relayed": False, "_agreed": threading.Event()}
    monkeypatch.setattr(StopFlag, "__init__", lambda flag: flag.__dict__.update(quiet))
    yield


@pytest.fixture
def refused(capfd) -> Callable[..., str]:
    """Runs a command that must fail as it should; the one line that it told."""

    def run(*arguments: object) -> str:
        assert cli.main([str(argument) for argument in arguments]) == 2
        return the_line(capfd.readouterr().err)

    return run


def the_line(stderr: str) -> str:
    """The last line of stderr, which is the only one of its kind, without its mark."""
    assert "Traceback" not in stderr
    lines = stderr.splitlines()
    assert [number for number, line in enumerate(lines) if line.startswith("nezha-ds: ")] == [len(lines) - 1]
    return lines[-1].removeprefix("nezha-ds: ")


# ------------------------------------------------------------------------------------------------------ recipe and JSON


def test_an_unknown_key_names_the_nearest(tmp_path, shards, refused):
    run = runs.make(tmp_path, shards)
    run.recipe.write_text(run.recipe.read_text().replace("log_every", "log_evry"))
    line = refused("pretrain", *run.arguments)
    assert line == f"{run.recipe}: unknown key 'train.log_evry'; did you mean 'log_every'?"


OVERRIDES = {
    "train.stepz=3": "unknown key 'train.stepz'; did you mean 'steps'?",
    "trian.steps=3": "unknown key 'trian'; did you mean 'train'?",
    "train.steps=0": "train.steps = 0: input should be greater than or equal to 1",
    "train.steps=many": "train.steps = 'many': input should be a valid integer",
    "train.steps": "override 'train.steps' is not of the form section.key=value",
    "data.length=8": "data.length: 8 is not between 16 and 4096 tokens; take 128 or 512",
    "data.length=1024": "data.length 1024 is above model.max_position_embeddings 512; raise that, no weights depend",
    "train.checkpoint_activations=3": "train.checkpoint_activations 3 is above model.num_hidden_layers 2; set it to",
    "model.positions=relative": "model.positions = 'relative'",
    "model.preset=huge": "preset 'huge' is not known",
    "model.num_attention_heads=3": "hidden_size = 32 is not a multiple of num_attention_heads = 3",
    "masking.rate=1.5": "masking.rate: 1.5 is not a share above 0 and below 1",
    "objective.mlm=0": "objective: all weights are 0, so there is nothing to minimise",
    "objective.span=1.0": "'whole-word' does not tell which; set masking.method=span or objective.span=0",
    "objective.sop=1.0": "set data.format=segment-pair and data.pairing=sentence-order, or objective.sop=0",
    "data.pairing=sentence-order": "data: pairing 'sentence-order' needs pairs, and format 'full-sentences' cuts none",
    "objective.span_form=bert": "objective.span_form = 'bert': input should be 'nezha' or 'spanbert'",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_that_cannot_be(tmp_path, shards, refused, override):
    run = runs.make(tmp_path, shards, override)
    assert OVERRIDES[override] in refused("pretrain", *run.arguments)


def test_sequences_beyond_positions_that_end(tmp_path, shards, refused):
    run = runs.make(tmp_path, shards, "model.positions=learned-absolute", "model.max_position_embeddings=24")
    assert refused("pretrain", *run.arguments) == (
        "data.length 32 is above model.max_position_embeddings 24; raise that, positions = 'learned-absolute' end there"
    )


def test_to_compile_where_no_compiler_is(tmp_path, shards, refused, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    run = runs.make(tmp_path, shards, "train.compile=true")
    assert refused("pretrain", *run.arguments) == (
        "train.compile = true needs a C++ compiler, and there is no no-such-compiler on PATH; install g++, "
        "or set train.compile=false"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[run\nfolder = 1", "is not valid TOML"),
        ("# 配方".encode("gbk"), "is not UTF-8 (byte 2); save it as UTF-8"),
        (None, "cannot be read (No such file or directory); name an existing file"),
    ],
)
def test_a_recipe_that_is_none(tmp_path, shards, refused, data, expected):
    run = runs.make(tmp_path, shards)
    run.recipe.unlink()
    if data is not None:
        run.recipe.write_bytes(data)
    assert f"recipe {run.recipe} {expected}" in refused("pretrain", *run.arguments)


def test_a_json_with_a_key_twice(tmp_path, shards, refused):
    run = runs.make(tmp_path, shards)
    run.ds_config.write_text('{"train_batch_size": 16, "train_batch_size": 32}')
    assert "key 'train_batch_size' stands twice; keep one" in refused("pretrain", *run.arguments)


def test_a_batch_that_the_ranks_do_not_divide_is_told_by_one_of_them(tmp_path, shards, refused, monkeypatch, capfd):
    run = runs.make(tmp_path, shards)
    for name, value in (("RANK", 0), ("WORLD_SIZE", 3), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 3)):
        monkeypatch.setenv(name, str(value))
    line = refused("pretrain", *run.arguments)
    assert "train_batch_size 16 cannot be divided among 3 ranks; start 2 or 4 ranks, or change train_batch_size" in line
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert cli.main(["pretrain", *run.arguments]) == 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_precision_that_the_device_has_not(tmp_path, shards, refused, monkeypatch, precision):
    device = AcceleratorInfo("abacus", 1, fp16=False, bf16=False)
    monkeypatch.setattr(run_module, "describe_accelerator", lambda: device)
    run = runs.make(tmp_path, shards, **{precision: {"enabled": True}})
    line = refused("pretrain", *run.arguments)
    assert f"asks for {precision}, which abacus here cannot compute; choose a JSON with another precision" in line


def test_impossible_ranks(tmp_path, shards, refused, monkeypatch):
    run = runs.make(tmp_path, shards)
    monkeypatch.setenv("RANK", "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK='one' is not a number" in refused("pretrain", *run.arguments)


# --------------------------------------------------------------------------------------------------------------- shards


def test_shards_that_are_not_there(tmp_path, refused):
    run = runs.make(tmp_path, tmp_path / "nothing")
    assert "has no manifest.json: not a prepared folder" in refused("pretrain", *run.arguments)


def test_a_missing_shard(tmp_path, shards, refused):
    shard = next(shards.glob("train-*.arrow"))
    shard.unlink()
    line = refused("pretrain", *runs.make(tmp_path, shards).arguments)
    assert f"shard {shard} is missing; copy it again, or delete" in line


def test_a_damaged_shard(tmp_path, shards, refused):
    shard = next(shards.glob("train-*.arrow"))
    checkpoints.flip_a_bit(shard)
    line = refused("pretrain", *runs.make(tmp_path, shards).arguments)
    assert str(shard) in line
    assert "damaged" in line


def test_a_manifest_of_another_tokenizer(tmp_path, shards, refused):
    swap_two_entries(shards / "vocab.txt")
    line = refused("pretrain", *runs.make(tmp_path, shards).arguments)
    assert f"{shards / 'vocab.txt'} is not the vocabulary that {shards / 'manifest.json'} was prepared with" in line


def alike(folder: Path) -> Path:
    """Another preparation whose shards have as many bytes: the same text with two characters in each other's place."""
    source = folder / "text.txt"
    source.write_text(TEXT.replace("周末", "末周"), encoding="utf-8")
    settings = PrepareSettings(inputs=(str(source),), out=folder / "alike", heldout=0.2, workers=1)
    prepare_module.prepare(settings, progress=False)
    return folder / "alike"


def stray(shards: Path) -> str:
    shutil.copy(next(shards.glob("train-*.arrow")), shards / "train-99999.arrow")
    return f"shard {shards / 'train-99999.arrow'} is not in manifest.json: two preparations mixed? Remove it, or delete"


def exchanged(shards: Path) -> str:
    first, second = next(shards.glob("train-*.arrow")), next(shards.glob("heldout-*.arrow"))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(whole)
    return "bytes instead of"


def of_another_preparation(shards: Path) -> str:
    """One shard is; the held-out documents are not the same ones, so sizes may tell it before hashes do."""
    name = next(shards.glob("train-*.arrow")).name
    shutil.copy(alike(shards.parent) / name, shards / name)
    return f"shard {shards / name} "


def with_another_manifest(shards: Path) -> str:
    shutil.copy(alike(shards.parent) / "manifest.json", shards / "manifest.json")
    return f"shard {shards}"


def edited_by_hand(shards: Path) -> str:
    path = shards / "manifest.json"
    path.write_text(path.read_text().replace('"weight": 0', '"weight": 1'))
    return f"{path} was changed after it was written (it is not what its fingerprint says); copy it again, or delete it"


def with_a_flipped_bit_in_its_vocabulary(shards: Path) -> str:
    checkpoints.flip_a_bit(shards / "vocab.txt")
    return (
        f"{shards / 'vocab.txt'} is not the vocabulary that {shards / 'manifest.json'} was prepared with; damaged, or"
    )


@pytest.mark.parametrize("command", ["pretrain", "inspect"])
@pytest.mark.parametrize(
    "mishap",
    [
        stray,
        exchanged,
        of_another_preparation,
        with_another_manifest,
        edited_by_hand,
        with_a_flipped_bit_in_its_vocabulary,
    ],
)
def test_a_folder_that_is_not_what_it_was(tmp_path, shards, refused, mishap, command):
    expected = mishap(shards)
    arguments = {"pretrain": runs.make(tmp_path, shards).arguments, "inspect": [shards]}
    line = refused(command, *arguments[command])
    assert expected in line
    assert "prepare again" in line.lower()


def test_a_mixture_of_two_vocabularies(tmp_path, shards, refused):
    """One is cased: its ids mean something else."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = PrepareSettings(inputs=(str(tmp_path / "text.txt"),), out=tmp_path / "cased", lowercase=False, workers=1)
    prepare_module.prepare(settings, progress=False)
    parts = f'a={{shards="{shards}"}}, b={{shards="{tmp_path / "cased"}", weight=2}}'
    line = refused("pretrain", *runs.make(tmp_path, shards, "data.shards=", f"data.mixture={{{parts}}}").arguments)
    assert "were prepared with different tokenizers: lowercase (" in line
    assert str(shards) in line and str(tmp_path / "cased") in line


def test_weights_are_refused_before_ranks_meet(tmp_path, shards, refused):
    manifest = read_manifest(shards)
    sources = (*manifest.sources, SourceEntry(name="law", weight=2, inputs=("law",)))
    write_manifest(shards, manifest.model_copy(update={"sources": sources}))
    line = refused("pretrain", *runs.make(tmp_path, shards).arguments)
    assert f"{shards} has weights for some of its sources and none for text; prepare again with a weight for" in line
    sources = (SourceEntry(name="text", weight=1, inputs=("text",)), sources[-1])
    write_manifest(shards, manifest.model_copy(update={"sources": sources}))
    line = refused("pretrain", *runs.make(tmp_path, shards).arguments)
    assert line == f"source law of {shards} has no documents to train on; prepare more of it, or take it out"


def test_a_mixture_cannot_be_prepared_on_the_way(tmp_path, shards, refused):
    settings = ("data.shards=", f'data.mixture.a.shards="{shards}"', 'run.prepare=["embedded"]')
    line = refused("pretrain", *runs.make(tmp_path, shards, *settings).arguments)
    assert line.startswith("run.prepare fills data.shards, and the recipe reads a mixture; prepare its folders with")


def test_a_damaged_manifest(tmp_path, shards, refused):
    (shards / "manifest.json").write_text("{}")
    assert "is damaged (format: Field required); copy it again, or delete it and prepare again" in refused(
        "pretrain", *runs.make(tmp_path, shards).arguments
    )


# ----------------------------------------------------------------------------------------------------- disk and folders


def test_no_free_disk_for_checkpoints(tmp_path, shards, refused, monkeypatch):
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    line = refused("pretrain", *runs.make(tmp_path, shards).arguments)
    assert "0.0 GB free, 6 checkpoints of 1M parameters need 0.1 GB; free space, choose another run.folder" in line


def test_no_free_disk_for_shards(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    (tmp_path / "a.txt").write_text("一篇。" * 10_000, encoding="utf-8")
    line = refused("prepare", tmp_path / "a.txt", "--out", tmp_path / "out", "--workers", 1)
    assert "0.0 GB free; free space or choose another folder: what is finished stays" in line


@pytest.mark.parametrize("command", ["prepare", "pretrain", "export"])
def test_an_unwritable_folder(tmp_path, shards, trained, refused, command):
    """Below a file: nobody can write there, not even root."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "out"
    (tmp_path / "a.txt").write_text("一篇。", encoding="utf-8")
    arguments = {
        "prepare": [tmp_path / "a.txt", "--out", place, "--workers", 1],
        "pretrain": runs.make(tmp_path, shards, f"run.folder={place}").arguments,
        "export": [trained, place],
    }
    line = refused(command, *arguments[command])
    assert f"cannot write {tmp_path / 'file'}" in line
    assert re.search(r"\((Not a directory|File exists)\); free space on its disk, or choose another folder$", line)


# ------------------------------------------------------------------------------------------------------------ preparing


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is empty; leave it out of the inputs"),
        (b" \n\n\t\n", "no document is left of"),
        ("天下大势".encode("gbk"), "not UTF-8"),
        (None, "does not exist; name a file, a folder, or `embedded`"),
    ],
)
def test_text_that_is_none(tmp_path, refused, data, expected):
    source = tmp_path / "a.txt"
    if data is not None:
        source.write_bytes(data)
    line = refused("prepare", source, "--out", tmp_path / "out", "--workers", 1)
    assert str(source) in line
    assert expected in line
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_empty_text_on_the_way_to_training(tmp_path, refused):
    (tmp_path / "a.txt").touch()
    run = runs.make(tmp_path, tmp_path / "shards", f'run.prepare=["{tmp_path / "a.txt"}"]')
    assert "a.txt is empty; leave it out of the inputs" in refused("pretrain", *run.arguments)


def test_a_folder_prepared_otherwise_is_kept(tmp_path, shards, refused):
    before = (shards / "manifest.json").read_bytes()
    line = refused("prepare", write(tmp_path / "b.txt"), "--out", shards)
    assert f"{shards} was prepared in another way (different: " in line
    assert "choose another folder, or replace it with --overwrite" in line
    assert (shards / "manifest.json").read_bytes() == before


def write(path: Path) -> Path:
    path.write_text("另一篇。", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--segmenter", "rjeiba"], "'rjeiba'"),
        (["--separation", "lines"], "separation = 'lines'"),
        (["--heldout", "1.5"], "heldout = 1.5: input should be less than 1"),
        (["--workers", "0"], "workers = 0: input should be greater than or equal to 1"),
        (["--vocabulary", "/nowhere/vocab.txt"], "vocabulary /nowhere/vocab.txt cannot be read"),
    ],
)
def test_options_of_prepare_that_cannot_be(tmp_path, refused, options, expected):
    assert expected in refused("prepare", write(tmp_path / "a.txt"), "--out", tmp_path / "out", *options)


# ----------------------------------------------------------------------------------------- what was prepared or trained


def test_inspecting_a_folder_that_is_not_prepared(tmp_path, refused):
    assert "has no manifest.json: not a prepared folder" in refused("inspect", tmp_path)


def test_exporting_what_is_not_trained(tmp_path, refused):
    assert "has no checkpoint yet; let it train until train.save_every steps" in refused("export", tmp_path, tmp_path)
    assert "does not exist; name the run.folder of a recipe" in refused("export", tmp_path / "no", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("天下大势", "the text has no [MASK]; write one"), ("天[MASK]" * 40, "tokens and the model takes 64; shorten")],
)
def test_masks_that_cannot_be_filled(tmp_path, trained, refused, text, expected):
    assert cli.main(["export", str(trained), str(tmp_path / "model")]) == 0
    assert expected in refused("fill-mask", tmp_path / "model", text)


def test_filling_masks_with_what_is_no_model(tmp_path, refused):
    assert "name a folder that export wrote" in refused("fill-mask", tmp_path, "[MASK]")


# ------------------------------------------------------------------------------------------------- beside a real engine


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
def test_a_shard_that_is_damaged_after_it_was_planned(tmp_path, shards):
    """The plan is found, so the damage shows in the loader's thread, when the engine waits for a batch."""
    settings = DataSettings(shards=str(shards), length=32)
    for split in ("train", "heldout"):
        load_plan(shards, read_manifest(shards), split, settings)
    shard = next(shards.glob("train-*.arrow"))
    checkpoints.flip_a_bit(shard)
    done = runs.make(tmp_path, shards).attempt()
    assert done.returncode == 2, done.stderr
    line = the_line(done.stderr)
    assert str(shard) in line
    assert "damaged" in line


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
def test_a_checkpoint_of_another_model(tmp_path, shards):
    run = runs.make(tmp_path, shards)
    checkpoints.write_checkpoint(run.folder / "checkpoints", 4)
    done = run.attempt()
    assert done.returncode == 2, done.stderr
    line = the_line(done.stderr)
    assert "at step 4 was trained with another [model]; set it back, or choose another run.folder" in line


# --------------------------------------------------------------------------------------------- known, and to be mended


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        (["objective.nsp=1.0"], "set data.format=segment-pair or objective.nsp=0"),
        (
            ["objective.nsp=1.0", "data.format=segment-pair", "data.pairing=sentence-order"],
            "set data.pairing=next-sentence or objective.nsp=0",
        ),
        (["objective.sop=1.0", "data.format=segment-pair"], "and data.pairing=sentence-order, or objective.sop=0"),
    ],
)
def test_pairs_that_the_data_has_not_are_refused_before_ranks_meet(tmp_path, shards, settings, way_out):
    run = runs.make(tmp_path, shards)
    recipe = load(Recipe, run.recipe, settings)
    with pytest.raises(ConfigError, match=re.escape(way_out)):
        check_recipe(recipe)


def test_two_questions_about_one_second_segment_are_refused(tmp_path, shards, refused):
    run = runs.make(tmp_path, shards, "objective.nsp=1.0", "objective.sop=0.5")
    assert "nsp 1.0 and sop 0.5 want different second segments; set objective.nsp=0" in refused(
        "pretrain", *run.arguments
    )


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
def test_a_misspelt_key_in_a_section_of_deepspeeds(tmp_path, shards):
    run = runs.make(tmp_path, shards, zero_optimization={"stage": 1, "reduce_buckets_size": 1000})
    done = run.attempt()
    assert done.returncode == 2
    assert "reduce_buckets_size" in the_line(done.stderr)
