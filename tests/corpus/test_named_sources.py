"""Several sources in one folder: no shard mixes them, each is read its own way, and the earliest keeps a copy."""

import gzip
import json
import os
import re
import shutil
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nezha_ds import cli
from nezha_ds.config import build, load
from nezha_ds.corpus import prepare as module
from nezha_ds.corpus.clean import CleanSettings
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings, SourceSettings, parse_sources
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.shards import Manifest, open_shard, read_manifest
from nezha_ds.text.tokenizer import Tokenizer
from nezha_ds.text.vocab import load_vocabulary
from tests.helpers import preparation, processes

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "launch" / "recipes" / "prepare-sources.toml"
GOLDEN = REPOSITORY / "tests" / "golden" / "wikiextractor" / "doc"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents(folder: Path, source: str) -> list[tuple[int, ...]]:
    """The documents of a source, those held out last."""
    manifest = read_manifest(folder)
    entries = [entry for split in ("train", "heldout") for entry in manifest.of(split) if entry.source == source]
    columns = [open_shard(folder, entry, manifest.tokenizer.vocabulary_size) for entry in entries]
    return [tuple(part.tolist()) for one in columns for part in np.split(one.tokens, one.documents[1:-1])]


def ids(*texts: str) -> list[tuple[int, ...]]:
    tokenizer = Tokenizer(load_vocabulary(), True)
    return [tuple(tokenizer.encode(text).ids.tolist()) for text in texts]


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, SourceSettings]:
    """Three sources of 60 documents, of which 20 stand in each."""
    sources: dict[str, SourceSettings] = {}
    for number, name in enumerate(("wiki", "news", "web")):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n\n".join(f"第{n}篇，文字共有。" for n in range(40 * number, 40 * number + 60)))
        sources[name] = SourceSettings(inputs=(str(path),))
    return sources


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALLEST_TASK", 500)


def weighted(sources: dict[str, SourceSettings]) -> dict[str, SourceSettings]:
    """The same with weights 1, 2, …"""
    return {
        name: source.model_copy(update={"weight": weight}) for weight, (name, source) in enumerate(sources.items(), 1)
    }


def run(out: Path, sources: dict[str, SourceSettings], workers: int = 1, **settings: Any) -> Manifest:
    return prepare(PrepareSettings(sources=sources, out=out, workers=workers, **settings), progress=False)


def test_each_shard_is_of_one_source_and_the_manifest_names_all(
    tmp_path: Path, texts: dict[str, SourceSettings], small_tasks: None
) -> None:
    manifest = run(tmp_path / "out", texts, inputs=(texts["wiki"].inputs[0],), heldout=0.2)
    assert [(one.name, one.weight) for one in manifest.sources] == [("text", 0), ("wiki", 0), ("news", 0), ("web", 0)]
    assert [one.inputs for one in manifest.sources[1:]] == [texts[name].inputs for name in texts]
    assert len(manifest.shards) > 8
    for number, name in enumerate(("wiki", "news", "web")):
        expected = ids(*(f"第{n}篇，文字共有。" for n in range(40 * number, 40 * number + 60)))
        assert sorted(documents(tmp_path / "out", name)) == sorted(expected)
    assert documents(tmp_path / "out", "text") == documents(tmp_path / "out", "wiki")


@pytest.mark.parametrize("size", [150, 700, 1 << 20])
def test_any_task_size_gives_the_same_documents(
    tmp_path: Path, texts: dict[str, SourceSettings], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    run(tmp_path / "out", texts, heldout=0.0, deduplicate=True)
    monkeypatch.setattr(module, "_SMALLEST_TASK", size)
    run(tmp_path / "other", texts, heldout=0.0, deduplicate=True)
    for name in texts:
        assert documents(tmp_path / "out", name) == documents(tmp_path / "other", name)


def test_the_earliest_source_keeps_a_copy(tmp_path: Path, texts: dict[str, SourceSettings], small_tasks: None) -> None:
    run(tmp_path / "out", dict(reversed(texts.items())), heldout=0.0, deduplicate=True, workers=2)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    kept = {name: (one["documents"], one["dropped"]) for name, one in report["sources"].items()}
    assert kept == {"web": (60, {}), "news": (40, {"copies": 20}), "wiki": (40, {"copies": 20})}
    assert (report["kept"], report["dropped"]) == (140, {"copies": 40})
    assert {name: one["tokens"] for name, one in report["sources"].items()} == {
        name: sum(map(len, documents(tmp_path / "out", name))) for name in texts
    }


def test_each_source_is_read_in_its_own_way(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("甲文。\n乙文。\n")
    (tmp_path / "rows.jsonl").write_text('{"body": "丙文。"}\n')
    (tmp_path / "plain.txt").write_text("丁文。\n还是丁文。\n")
    sources = {
        "lines": SourceSettings(inputs=(str(tmp_path / "lines"),), separation="line"),
        "rows": SourceSettings(inputs=(str(tmp_path / "rows.jsonl"),), field="body"),
    }
    run(tmp_path / "out", sources, inputs=(str(tmp_path / "plain.txt"),), heldout=0.0)
    found = {name: documents(tmp_path / "out", name) for name in ("lines", "rows", "text")}
    assert found == {"lines": ids("甲文。", "乙文。"), "rows": ids("丙文。"), "text": ids("丁文。还是丁文。")}


def test_two_processes_write_the_bytes_of_one(
    tmp_path: Path, texts: dict[str, SourceSettings], small_tasks: None
) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        run(tmp_path / name, texts, workers, heldout=0.2, deduplicate=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_other_weights_only_change_the_manifest(tmp_path: Path, texts: dict[str, SourceSettings]) -> None:
    before = run(tmp_path / "out", texts)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow")}
    with pytest.raises(ConfigError, match=r"different: sources\.wiki\.weight, .* replace it with --overwrite"):
        run(tmp_path / "out", weighted(texts))
    run(tmp_path / "out", weighted(texts), overwrite=True)
    after = read_manifest(tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow")} == times
    assert after.shards == before.shards
    assert after.fingerprint != before.fingerprint
    run(tmp_path / "whole", weighted(texts))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.timing
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []
    for name in ("one", "two"):
        (tmp_path / name).write_text("\n\n".join(f"{name}第{n}篇，" + "一些文字，" * 40 for n in range(500)))
        sources += ["--source", f"{name}={tmp_path / name}"]
    out = tmp_path / "out"
    process = preparation.start(*sources, "--workers", 2, "--out", out, TASK_BYTES=20_000, OPEN_TASKS=12)
    processes.wait_for(lambda: len([*out.glob("receipts/*.json")]) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    preparation.finish(process)
    assert not (out / "manifest.json").exists()
    shards = [shard for path in out.glob("receipts/*.json") for shard in json.loads(path.read_bytes())["shards"]]
    times = {name: (out / name).stat().st_mtime_ns for name in (shard["name"] for shard in shards)}
    monkeypatch.setattr(module, "_SMALLEST_TASK", 20_000)
    for folder in (out, tmp_path / "whole"):
        assert cli.main(["prepare", *sources, "--workers", "1", "--out", str(folder)]) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert contents(out) == contents(tmp_path / "whole")


def test_a_source_of_which_nothing_is_left_is_named(tmp_path: Path, texts: dict[str, SourceSettings]) -> None:
    (tmp_path / "bad.txt").write_text("no Chinese\n\nnone either")
    (tmp_path / "empty.txt").write_text("")
    texts["bad"] = SourceSettings(inputs=(str(tmp_path / "bad.txt"), str(tmp_path / "empty.txt")))
    with pytest.raises(DataError, match=r"left of source 'bad', .*bad\.txt, .* \(2 not Chinese, 1 empty file\); give"):
        run(tmp_path / "out", texts, clean=CleanSettings(min_chinese=0.5), on_error="skip")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_weight_needs_something_to_train_on(tmp_path: Path, texts: dict[str, SourceSettings]) -> None:
    (tmp_path / "tiny.txt").write_text("只有一篇。")
    sources = {**texts, "tiny": SourceSettings(inputs=(str(tmp_path / "tiny.txt"),))}
    run(tmp_path / "out", sources, heldout=0.99)
    assert {entry.source for entry in read_manifest(tmp_path / "out").of("heldout")} == {*sources}
    with pytest.raises(
        DataError, match=r"every document of source '\w+' is held out, .* more text, or lower --heldout"
    ):
        run(tmp_path / "weighted", weighted(sources), heldout=0.99)
    with pytest.raises(DataError, match="is held out"):
        run(tmp_path / "out", weighted(sources), heldout=0.99, overwrite=True)


def test_another_way_to_read_a_source_is_another_preparation(tmp_path: Path, texts: dict[str, SourceSettings]) -> None:
    run(tmp_path / "out", texts)
    changed = {**texts, "web": texts["web"].model_copy(update={"field": "body", "separation": "line"})}
    with pytest.raises(ConfigError, match=r"different: sources\.web\.separation, sources\.web\.field\)"):
        run(tmp_path / "out", changed)
    with pytest.raises(ConfigError, match=r"different: sources, files\)"):
        run(tmp_path / "out", dict(reversed(texts.items())))
    run(tmp_path / "plain", {}, inputs=texts["web"].inputs)
    with pytest.raises(ConfigError, match=r"different: separation\)"):
        run(tmp_path / "plain", {}, inputs=texts["web"].inputs, separation="line")


# --------------------------------------------------------------------------------------------- recipe and command line


def test_the_shipped_recipe_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN, "data/wiki")
    rows = [{"content": f"第{n}条新闻，今天的天气很好，明天的天气也很好。"} for n in range(5)]
    for name in ("a/1.jsonl.gz", "a/b/2.jsonl.gz"):
        path = Path("data/news", name)
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    Path("data/web").mkdir()
    Path("data/web/pages.txt").write_text("这是一个网页上的一行文字，说的是别的事情。\n返回首页\n")
    assert cli.main(["prepare", "--recipe", str(RECIPE), "--workers", "1"]) == 0
    manifest = read_manifest(Path("build/shards"))
    assert [(one.name, one.weight) for one in manifest.sources] == [("wiki", 2), ("news", 3), ("web", 1)]
    report = json.loads(Path("build/shards/report.json").read_bytes())
    assert {name: one["documents"] for name, one in report["sources"].items()} == {"wiki": 3, "news": 5, "web": 1}


def test_the_shipped_recipe_explains_every_option() -> None:
    text = RECIPE.read_text()
    for kind in (PrepareSettings, CleanSettings, SourceSettings):
        for name in {*kind.model_fields} - {"clean", "sources"}:
            assert re.search(rf"^(# )?{name} = ", text, re.M), name
    # With the comments before them taken away, what is shown must be a default, or an example of what has none.
    shown = load_text(re.sub(r"^# (?=\w+ = )", "", text, flags=re.M))
    given, defaults = load(PrepareSettings, RECIPE), PrepareSettings(out=Path())
    examples = {name for name in PrepareSettings.model_fields if getattr(defaults, name, "") is None}
    assert examples == {"user_dictionary", "vocabulary", "workers"}
    assert shown.model_copy(update=dict.fromkeys(examples)) == given


def load_text(text: str) -> PrepareSettings:
    return build(PrepareSettings, tomllib.loads(text), "text")


def prepared_by(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> PrepareSettings:
    """The settings that a command line comes to."""
    found: list[PrepareSettings] = []
    monkeypatch.setattr(module, "prepare", found.append)
    assert cli.main(["prepare", *arguments]) == 0
    return found[0]


def test_flags_override_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(PrepareSettings, RECIPE)
    assert prepared_by(monkeypatch, "--recipe", str(RECIPE)) == recipe
    changed = prepared_by(
        *(monkeypatch, "--recipe", str(RECIPE), "--out", "x", "--clean", "min_chinese=0.5", "--set", "heldout=0.1"),
        *("--source", "news=a", "--source", "news=b", "--source", "law:7=c=d", "--set", "sources.wiki.weight=9"),
        *("--heldout", "0.3", "--cased"),
    )
    assert (changed.out, changed.clean.min_chinese, changed.clean.min_characters) == (Path("x"), 0.5, 20)
    assert (changed.heldout, changed.lowercase, changed.deduplicate) == (0.3, False, True)
    assert [*changed.sources] == ["wiki", "news", "web", "law"]
    assert changed.sources["news"] == SourceSettings(inputs=("a", "b"), weight=3, field="content")
    assert changed.sources["law"] == SourceSettings(inputs=("c=d",), weight=7)
    assert changed.sources["wiki"].weight == 9


def test_plain_inputs_and_sources_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = prepared_by(monkeypatch, "a", "b", "--source", "新闻=s3://bucket/x", "--out", "x")
    assert [(one.name, one.inputs) for one in settings.all_sources()] == [
        ("text", ("a", "b")),
        ("新闻", ("s3://bucket/x",)),
    ]
    assert [one.inputs for one in PrepareSettings(out=Path()).all_sources()] == [("embedded",)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "news"], "--source 'news' is not of the form NAME=INPUT or NAME:WEIGHT=INPUT"),
        (["--source", "news:half=a"], "--source 'news:half=a' is not of the form"),
        (["--source", "a.b=c"], "--source 'a.b=c' is not of the form"),
        (["--source", "a:1=b", "--source", "a:2=c"], "gives 'a' another weight than 1; give it one"),
        (["--source", "text=b", "a"], "source 'text' is what plain inputs form; give one of the two another name"),
        (
            ["a", "--source", "b:1=c"],
            "some sources have weights and text has none (plain inputs are 'text'); give every",
        ),
        (["--source", "a:0=a", "--source", "b:1=c"], "some sources have weights and a has none; give every source a"),
        (["a", "--set", "sources.a.weight=1"], "sources.a.inputs is not set; give it a value"),
        (["a", "--set", "sources.a.weigth=1", "--source", "a=b"], "'sources.a.weigth'; did you mean 'weight'?"),
        (["a", "--set", "sources=3", "--source", "a=b"], "override of 'sources.a.inputs': 'sources' is a value"),
        (["a", "--set", "clean.min_chines=1"], "unknown key 'clean.min_chines'; did you mean 'min_chinese'?"),
        (["a", "--set", "seperation='line'"], "unknown key 'seperation'; did you mean 'separation'?"),
    ],
)
def test_what_is_wrong_with_sources_is_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prepare", *arguments, "--out", "nowhere"]) == 2
    assert message in capsys.readouterr().err


def test_weights_are_whole_and_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"sources\.a\.weight = -1"):
        load(PrepareSettings, overrides=["out='x'", "sources.a.inputs=['b']", "sources.a.weight=-1"])
    with pytest.raises(ConfigError, match=r"out is not set; give it a value"):
        load(PrepareSettings)
    assert parse_sources([]) == {}
