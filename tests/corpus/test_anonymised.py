"""Text of anonymised ids, with a vocabulary of its own, down to whole-word masks: no Chinese needed."""

import re
from pathlib import Path

import numpy as np
import pytest

from nezha_ds import cli
from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.data.collate import replacement_ids, special_ids
from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.shards import open_shard, read_manifest, unpack_words
from nezha_ds.world import World

DOCUMENTS = 120


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frequent ids, rare ones, and some met once; a document a line."""
    rng = np.random.default_rng(1)
    lines = [" ".join(str(number) for number in rng.zipf(1.3, 60) % 50_000) for _ in range(DOCUMENTS)]
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def prepared(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the commands that a user would type."""
    folder = tmp_path_factory.mktemp("prepared")
    vocabulary, out = folder / "vocab.txt", folder / "shards"
    reading = [str(text), "--separation", "line", "--workers", "1"]
    assert cli.main(["vocab", *reading, "--kind", "words", "--out", str(vocabulary)]) == 0
    arguments = ["--vocabulary", str(vocabulary), "--segmenter", "pretokenized", "--out", str(out)]
    assert cli.main(["prepare", *reading, *arguments]) == 0
    return out


def test_every_id_is_one_token_and_one_word(text: Path, prepared: Path) -> None:
    manifest = read_manifest(prepared)
    vocabulary = folder_vocabulary(prepared, manifest)
    numbers = text.read_text().split()
    often = {number for number in numbers if numbers.count(number) > 1}
    assert {*vocabulary.tokens[5:]} == often
    assert manifest.total("tokens") == manifest.total("words") == len(numbers) == DOCUMENTS * 60
    assert manifest.total("unknowns") == sum(number not in often for number in numbers)
    expected = [[vocabulary.ids.get(number, 1) for number in line.split()] for line in text.read_text().split("\n")]
    found = []
    for entry in manifest.shards:
        columns = open_shard(prepared, entry, len(vocabulary))
        assert unpack_words(columns).all()
        found += [part.tolist() for part in np.split(columns.tokens, columns.documents[1:-1])]
    assert sorted(found) == sorted(expected)


def test_inspect_shows_ids(prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert cli.main(["inspect", str(prepared), "--samples", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"tokens a word +1\.00", shown)
    assert re.search(r"tokenizer +bert-wordpiece, [\d,]+ entries", shown)
    ids = shown.strip().split("\n")[-1].split(" ")
    assert len(ids) > 100  # of two documents, what is to be predicted in brackets
    assert all(re.fullmatch(r"\[?(\d+|\[UNK\]|\[SEP\])\]?", number) for number in ids)


def test_words_of_several_ids_are_masked_whole(tmp_path: Path) -> None:
    """Words of one, two and three ids, joined by a hyphen, which BERT sets apart: the spaces are what counts."""
    rng = np.random.default_rng(2)
    words = ["-".join(str(number) for number in rng.integers(0, 300, size)) for size in rng.integers(1, 4, 6000)]
    (tmp_path / "text.txt").write_text("\n".join(" ".join(words[at : at + 50]) for at in range(0, 6000, 50)))
    reading = [str(tmp_path / "text.txt"), "--separation", "line", "--workers", "1"]
    vocabulary, out = tmp_path / "vocab.txt", tmp_path / "shards"
    cli.main(["vocab", *reading, "--kind", "words", "--out", str(vocabulary), "--min-frequency", "1"])
    arguments = ["--segmenter", "pretokenized", "--vocabulary", str(vocabulary), "--out", str(out), "--heldout", "0"]
    assert cli.main(["prepare", *reading, *arguments]) == 0
    manifest = read_manifest(out)
    assert manifest.total("words") == 6000
    assert manifest.total("unknowns") == 0
    entries = folder_vocabulary(out, manifest)
    stream = Stream(
        DataSettings(shards=str(out), length=256, format="doc-sentences"),
        MaskingSettings(mask_share=1.0, random_share=0.0),
        seed=1,
        micro_batch=120,
        world=World(),
        special=special_ids(entries),
        random_ids=replacement_ids(entries),
    )
    with build_loader(stream, global_batch=120, first=0) as loader:
        batch = next(loader)
    hyphen, masked = entries.ids["-"], 0
    for row, positions, labels in zip(batch.input_ids, batch.mlm_positions, batch.mlm_labels, strict=True):
        chosen = {int(place): int(label) for place, label in zip(positions, labels, strict=True) if label >= 0}
        whole = [chosen.get(place, index) for place, index in enumerate(row.tolist())]
        for place, index in enumerate(whole):
            if index == hyphen:  # within a word: what stands on both sides is masked with it, or neither is
                assert len({place - 1 in chosen, place in chosen, place + 1 in chosen}) == 1
        masked += len(chosen)
    assert 0.14 < masked / manifest.total("tokens") < 0.16
