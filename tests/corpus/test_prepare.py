"""The same bytes from any number of processes and after any crash; every document once, copies on one side."""

import gzip
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.corpus import encode, sources
from nezha_ds.corpus import prepare as module
from nezha_ds.corpus.clean import CleanSettings
from nezha_ds.corpus.dedup import KEYS, document_key
from nezha_ds.corpus.inputs import find_files
from nezha_ds.corpus.prepare import prepare, settle
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.sources import Piece, Reading, read
from nezha_ds.errors import ConfigError, DataError, LaunchError
from nezha_ds.shards import Manifest, Split, open_shard, read_manifest, unpack_words
from nezha_ds.text.document import DocumentEncoder
from nezha_ds.text.normalize import normalize
from nezha_ds.text.segment import make_segmenter
from nezha_ds.text.tokenizer import Tokenizer
from nezha_ds.text.vocab import SPECIAL_TOKENS, load_vocabulary
from tests.helpers import preparation, processes

STATUTES = find_files(["embedded"])[1]
TASK_BYTES = 200_000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 MB of statutes, plain, so that they are cut into ten tasks."""
    path = tmp_path_factory.mktemp("text") / "statutes.txt"
    documents = [document.text for document in read(Piece(STATUTES, 0, None, 0), Reading())]
    path.write_text("\n\n".join(documents[:600]))
    return path


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALLEST_TASK", TASK_BYTES)


def run(out: Path, *inputs: Path, workers: int = 1, **settings: Any) -> Manifest:
    names = tuple(str(path) for path in inputs)
    return prepare(PrepareSettings(inputs=names, out=out, workers=workers, **settings), progress=False)


def write_documents(path: Path, *documents: str) -> Path:
    path.write_text("\n\n".join(documents))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tokens_of(folder: Path, split: Split) -> list[tuple[int, ...]]:
    """The documents of a split."""
    manifest = read_manifest(folder)
    documents = []
    for entry in manifest.of(split):
        columns = open_shard(folder, entry, manifest.tokenizer.vocabulary_size)
        documents += [tuple(part.tolist()) for part in np.split(columns.tokens, columns.documents[1:-1])]
    return documents


def test_two_workers_write_the_bytes_of_one(tmp_path: Path, text: Path) -> None:
    run(tmp_path / "one", text)
    run(tmp_path / "two", text, workers=2)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert sum(name.startswith("train-") for name in one) >= 9
    assert {name for name in one if not name.endswith(".arrow")} == {
        "manifest.json",
        "prepare.json",
        "report.json",
        "vocab.txt",
    }


def test_shards_hold_what_the_encoder_gives(tmp_path: Path, text: Path) -> None:
    manifest = run(tmp_path, text, heldout=0.0)
    encoder = DocumentEncoder(Tokenizer(load_vocabulary(), True), make_segmenter("rjieba"))
    expected = [encoder.encode(normalize(document)) for document in text.read_text().split("\n\n")]
    shards = [open_shard(tmp_path, entry, 21128) for entry in manifest.shards]
    assert tokens_of(tmp_path, "train") == [tuple(document.ids.tolist()) for document in expected]
    words = np.concatenate([unpack_words(columns) for columns in shards])
    assert np.array_equal(words, np.concatenate([document.word_starts for document in expected]))
    assert manifest.total("documents") == len(expected)
    assert manifest.total("tokens") == sum(len(document.ids) for document in expected)
    assert manifest.total("words") == sum(int(document.word_starts.sum()) for document in expected)
    assert manifest.total("sentences") == sum(len(document.sentences) for document in expected)
    unknown = load_vocabulary().unk_id
    assert manifest.total("unknowns") == sum(document.ids.tolist().count(unknown) for document in expected)


def test_anonymised_ids_keep_their_words(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL_TOKENS, *map(str, range(100)), "##7"]))
    source = write_documents(tmp_path / "a.txt", "12 7 997 400\n5 5", "8")
    options = {"vocabulary": vocabulary, "segmenter": "pretokenized", "heldout": 0.0}
    manifest = run(tmp_path / "out", source, **options)
    first = 5  # entry "0"
    assert tokens_of(tmp_path / "out", "train") == [(17, 12, first + 99, 105, 1, 10, 10), (13,)]
    columns = open_shard(tmp_path / "out", manifest.shards[0], 106)
    assert unpack_words(columns).tolist() == [True, True, True, False, True, True, True, True]
    assert columns.sentences.tolist() == [0, 5, 7]


def test_a_user_dictionary_is_part_of_the_identity(tmp_path: Path) -> None:
    source, words = write_documents(tmp_path / "a.txt", "用石墨烯芯片。"), tmp_path / "words.txt"
    words.write_text("石墨烯芯片")
    assert run(tmp_path / "out", source, user_dictionary=words).total("words") == 3
    words.write_text("石墨烯")
    with pytest.raises(ConfigError, match=r"different: segmenter\)"):
        run(tmp_path / "out", source, user_dictionary=words)


def test_small_files_share_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for number in range(200):
        write_documents(tmp_path / "in" / f"{number:03d}.txt", f"第{number}篇。", "又一篇。")
    assert len(run(tmp_path / "few", tmp_path / "in").shards) == 2
    monkeypatch.setattr(module, "_SMALLEST_TASK", 1000)
    assert 5 <= len(run(tmp_path / "many", tmp_path / "in", heldout=0.0).shards) <= 6
    few = tokens_of(tmp_path / "few", "train") + tokens_of(tmp_path / "few", "heldout")
    assert Counter(tokens_of(tmp_path / "many", "train")) == Counter(few)


def test_a_shard_is_closed_at_its_size(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "few", text)
    monkeypatch.setattr(encode, "SHARD_BYTES", 50_000)
    many = run(tmp_path / "many", text)
    assert max(entry.bytes for entry in many.of("train") if entry.documents > 1) < 52_000
    assert tokens_of(tmp_path / "many", "train") == tokens_of(tmp_path / "few", "train")


# ------------------------------------------------------------------------------------------------------------- restarts


@pytest.mark.timing
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-c"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, text: Path, sign: signal.Signals) -> None:
    out = tmp_path / "out"
    process = preparation.start(text, "--workers", 2, "--out", out, TASK_BYTES=TASK_BYTES, OPEN_TASKS=5)
    processes.wait_for(lambda: len([*out.glob("receipts/*.json")]) >= 2, process)
    process.send_signal(sign)
    code, told = preparation.finish(process)
    assert (code, "Traceback" in told) == ({signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[sign], False)
    processes.wait_for(lambda: not processes.session(process.pid))  # no worker outlives its parent
    receipts = [*out.glob("receipts/*.json")]
    assert receipts
    assert not (out / "manifest.json").exists()
    assert sign == signal.SIGKILL or not [*out.rglob(".*.tmp")]
    finished = [out / shard["name"] for receipt in receipts for shard in json.loads(receipt.read_bytes())["shards"]]
    times = [path.stat().st_mtime_ns for path in finished]
    (out / ".train-00009-000.arrow.1.tmp").write_bytes(b"half")

    run(out, text)
    assert [path.stat().st_mtime_ns for path in finished] == times
    run(tmp_path / "whole", text)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_damaged_shard_of_an_unfinished_run_is_made_again(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "cut", text)
    shard = tmp_path / "cut" / "train-00003-000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    run(tmp_path / "cut", text)
    run(tmp_path / "whole", text)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_complete_folder_is_left_alone(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path, text)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.*")}
    settings = PrepareSettings(inputs=(str(text),), out=tmp_path)
    assert prepare(settings) == first
    assert "is complete already: 600 documents" in " ".join(capsys.readouterr().err.split())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.*")} == times
    (tmp_path / first.shards[0].name).unlink()
    with pytest.raises(DataError, match=r"is missing; copy it again, or delete .*manifest\.json and prepare again"):
        prepare(settings)


def test_another_preparation_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.txt", "甲文。", "乙文。", "丙文。")
    out = tmp_path / "out"
    run(out, source)
    with pytest.raises(ConfigError, match=r"different: heldout, deduplicate\); choose .* --overwrite"):
        run(out, source, heldout=0.5, deduplicate=True)
    write_documents(source, "甲文。", "乙文。")
    with pytest.raises(ConfigError, match=r"different: files\)"):
        run(out, source)
    assert run(out, source, overwrite=True).total("documents") == 2
    assert len(tokens_of(out, "train") + tokens_of(out, "heldout")) == 2
    (out / "prepare.json").unlink()
    with pytest.raises(ConfigError, match=r"it has no prepare\.json"):
        run(out, source)


# --------------------------------------------------------------------------------------------------------- the held-out


def test_copies_never_straddle_the_splits(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.txt", *(f"第{number % 100}篇文字。" for number in range(400)))
    run(tmp_path / "out", source, heldout=0.3)
    train, heldout = tokens_of(tmp_path / "out", "train"), tokens_of(tmp_path / "out", "heldout")
    assert len(train) + len(heldout) == 400
    assert not {*train} & {*heldout}
    assert 15 < len({*heldout}) < 45


def test_deduplication_keeps_the_first_whoever_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALLEST_TASK", 1000)
    numbers = [number * 7 % 90 for number in range(300)]
    source = write_documents(tmp_path / "a.txt", *(f"第{number}篇　文字。" for number in numbers))
    manifest = run(tmp_path / "one", source, heldout=0.0, deduplicate=True)
    run(tmp_path / "two", source, heldout=0.0, deduplicate=True, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(manifest.shards) > 2
    encoder = DocumentEncoder(Tokenizer(load_vocabulary(), True), make_segmenter("rjieba"))
    expected = [tuple(encoder.encode(f"第{number}篇 文字。").ids.tolist()) for number in dict.fromkeys(numbers)]
    assert tokens_of(tmp_path / "one", "train") == expected
    report = json.loads((tmp_path / "one" / "report.json").read_bytes())
    assert report["sources"] == {"text": {"documents": 90, "tokens": 540, "dropped": {"copies": 210}, "faults": {}}}
    assert (report["kept"], report["dropped"], report["faults"]) == (90, {"copies": 210}, {})


@pytest.mark.parametrize("heldout", [0.0001, 0.02, 0.9999])
def test_two_documents_are_enough_for_both_splits(tmp_path: Path, heldout: float) -> None:
    source = write_documents(tmp_path / "a.txt", "一篇。", "另一篇。")
    run(tmp_path / "out", source, heldout=heldout)
    assert [len(tokens_of(tmp_path / "out", split)) for split in ("train", "heldout")] == [1, 1]


def test_one_document_is_for_training(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.txt", "一篇。", "一篇。")
    manifest = run(tmp_path / "out", source, heldout=0.9999)
    assert [entry.split for entry in manifest.shards] == ["train"]
    assert [path.name for path in (tmp_path / "out").glob("*.arrow")] == [manifest.shards[0].name]


@given(st.integers(0, KEYS), st.integers(0, KEYS - 1), st.integers(0, KEYS - 1))
def test_a_settled_bound_divides_the_keys(bound: int, one: int, other: int) -> None:
    lowest, highest = min(one, other), max(one, other)
    settled = settle(bound, lowest, highest)
    if bound and lowest < highest:
        assert lowest < settled <= highest
        assert settled == bound or not lowest < bound <= highest
    else:
        assert settled == 0


# ------------------------------------------------------------------------------------------------------------ bad input


def test_cleaning_is_counted_by_reason(tmp_path: Path) -> None:
    source = write_documents(
        tmp_path / "a.txt", "够长的中文文字。", "短。", "no Chinese in here", "\u200b\u200b", "\ue000"
    )
    run(tmp_path / "out", source, clean=CleanSettings(min_characters=3, min_chinese=0.5), heldout=0.0)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert (report["kept"], report["dropped"]) == (1, {"empty": 1, "not Chinese": 1, "too short": 2})


def test_removed_lines_are_counted_and_gone(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.txt", "上一篇：甲\n正文。\n责任编辑：乙", "返回首页", "又一篇正文。")
    clean = CleanSettings(boilerplate=("web",))
    manifest = run(tmp_path / "out", source, clean=clean, heldout=0.0)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert (report["kept"], report["dropped"], report["removed_lines"]) == (2, {"empty": 1}, 2)
    assert manifest.total("tokens") == len("正文。又一篇正文。")


def test_a_fault_in_a_worker_reaches_the_user(tmp_path: Path, text: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "好"}\n{"text": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: character 0 of the text is half a surrogate pair"):
        run(tmp_path / "out", bad, text, workers=2)
    assert not (tmp_path / "out" / "manifest.json").exists()


def broken_inputs(folder: Path) -> list[Path]:
    """One file with each kind of fault, good documents around it."""
    good = '{"text": "好。"}\n'
    rows = "".join(f'{{"text": "{number}{"字" * 1000}"}}\n' for number in range(500)).encode()
    files = {
        "a.txt": "甲文。\n\n乙".encode() + b"\xb0\n\n" + "丙文。".encode(),
        "b.txt": "短文。\n\n".encode() + b"xy " * (1 << 19) + "\n\n后文。".encode(),
        "c.jsonl.gz": gzip.compress(rows)[:-50],
        "d.jsonl": (good + '{"body": "x"}\n' + good + '{"text": "\\ud800"}\n' + good + '{"text": "半').encode(),
        "e.txt": b"",
        "f.parquet": b"no table at all",
        "g.arrow": b"no table either",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def test_broken_input_is_counted_and_named_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 1 << 20)
    run(tmp_path / "one", *broken_inputs(tmp_path), on_error="skip", deduplicate=True)
    report = json.loads((tmp_path / "one" / "report.json").read_bytes())
    assert report["faults"] == {
        "damaged file": 3,
        "empty file": 1,
        "not JSON": 1,
        "not UTF-8": 1,
        "not Unicode": 1,
        "too long": 1,
        "wrong field": 1,
    }
    named = [line.removeprefix(f"{tmp_path}/") for line in report["first_faults"]]
    expected = (
        *("e.txt is empty", "f.parquet is damaged", "a.txt, line 3: not UTF-8", "b.txt, line 3: no end"),
        *("c.jsonl.gz, line ", "d.jsonl, line 2: no field 'text'", "d.jsonl, line 4: character 0 of the text is half"),
        *("d.jsonl, line 6: not JSON", "g.arrow is damaged"),
    )
    assert [line.startswith(part) for line, part in zip(named, expected, strict=True)] == [True] * 9
    before_the_cut = int(named[4].split("line ")[1].split(":")[0].replace(",", "")) - 1
    assert report["kept"] == 4 + 1 + before_the_cut > 300
    assert report["dropped"] == {"copies": 2}
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("faults of the input passed over: 3 damaged file, 1 empty file, ")
    assert told[1:6] == report["first_faults"][:5]
    assert told[6] == f"more in {tmp_path / 'one' / 'report.json'}"


def test_two_workers_pass_over_the_same(tmp_path: Path, text: Path) -> None:
    inputs = (text, *broken_inputs(tmp_path))  # several tasks
    for name, workers in (("one", 1), ("two", 2)):
        run(tmp_path / name, *inputs, on_error="skip", workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_stopped_preparation_goes_on_with_skip(tmp_path: Path, text: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "好"}\n{"text": "半')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: not JSON"):
        run(tmp_path / "out", text, bad)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-0000[0-7]*")}
    assert len(times) == 8
    run(tmp_path / "out", text, bad, on_error="skip")
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_nothing_but_faults_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"no document is left of .*a\.txt \(1 empty file\); give more text"):
        run(tmp_path / "out", tmp_path / "a.txt", on_error="skip")


def test_nothing_but_white_space_is_refused(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.txt", " ", "\u200b")
    with pytest.raises(DataError, match=r"no document is left of .*a\.txt \(1 empty\); give more text"):
        run(tmp_path / "out", source)


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = Counter(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), usage))
    with pytest.raises(LaunchError, match=r"shards need about 0\.0 GB and the disk of .* has 0\.0 GB free"):
        run(tmp_path / "out", text)


def test_the_shipped_corpus(embedded: Path) -> None:
    manifest = read_manifest(embedded)
    assert manifest.total("documents") == 2459
    assert 30 <= sum(entry.documents for entry in manifest.of("heldout")) <= 70
    assert 3_300_000 < manifest.total("tokens") < 3_500_000
    assert len({document_key(str(document)) for document in tokens_of(embedded, "train")}) > 2300
