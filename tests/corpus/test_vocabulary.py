"""`nezha-ds vocab`: the same file from any number of processes, of whatever prepare reads."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nezha_ds import cli
from nezha_ds.config import build
from nezha_ds.corpus import prepare as dividing
from nezha_ds.corpus import vocabulary as module
from nezha_ds.corpus.inputs import find_files
from nezha_ds.corpus.sources import Piece, Reading, read
from nezha_ds.corpus.vocabulary import VocabularySettings, train_vocabulary
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.text.byte_bpe import ByteVocabulary
from nezha_ds.text.tokenizer import Tokenizer
from nezha_ds.text.vocab import SPECIAL_TOKENS, Vocabulary, load_vocabulary


def run(out: Path, *inputs: Path, workers: int = 1, **settings: Any) -> Vocabulary:
    names = tuple(str(path) for path in inputs)
    return train_vocabulary(VocabularySettings(inputs=names, out=out, workers=workers, **settings), progress=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 MB of statutes."""
    path = tmp_path_factory.mktemp("text") / "statutes.txt"
    documents = [document.text for document in read(Piece(find_files(["embedded"])[1], 0, None, 0), Reading())]
    path.write_text("\n\n".join(documents[:300]))
    return path


@pytest.mark.parametrize("kind", ["bert-wordpiece", "byte-bpe", "words"])
def test_two_workers_write_the_file_of_one(
    kind: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dividing, "_SMALLEST_TASK", 100_000)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    one = run(tmp_path / "deep" / "one", text, kind=kind, size=2500)
    two = run(tmp_path / "two", text, kind=kind, size=2500, workers=2)
    assert (tmp_path / "deep" / "one").read_bytes() == (tmp_path / "two").read_bytes() == one.data
    assert one == two
    assert 1400 < len(one) <= 2500
    assert isinstance(one, ByteVocabulary) == (kind == "byte-bpe")


def test_it_reads_and_cleans_as_prepare_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"body": "甲乙甲乙　ＡＢ AB"}, {"body": "丙丙"}, {"text": "丁丁"}]
    data = "\n".join(json.dumps(row) for row in rows) + '\n{"body": "戊'
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(data.encode()))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz, line 3: no field 'body'"):
        run(tmp_path / "vocab.txt", source, field="body")
    found = run(tmp_path / "vocab.txt", source, field="body", on_error="skip", clean={"min_characters": 3})
    assert set(found.tokens) - {*SPECIAL_TOKENS} == {"甲", "乙"}
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "faults of the input passed over: 1 not JSON, 1 wrong field"
    assert re.search(r"line 3: no field 'body'", told[1])
    cased = run(tmp_path / "cased.txt", source, field="body", on_error="skip", lowercase=False, min_frequency=1)
    assert {"A", "##B", "Ａ"} <= {*cased.tokens}
    assert not {"a", "##b"} & {*cased.tokens}


def test_a_file_is_not_replaced_unasked(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "vocab.txt"
    out.write_text("precious")
    with pytest.raises(ConfigError, match=r"vocab\.txt is there already; choose another name, or replace it with --ov"):
        run(out, text, size=100)
    assert out.read_text() == "precious"
    run(out, text, size=100, overwrite=True)
    assert len(load_vocabulary(out)) == 100
    with pytest.raises(ConfigError, match=r"is a folder; name the file to write, such as .*vocab\.txt"):
        run(tmp_path, text)


def test_text_without_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \u200b\n\n \n")
    with pytest.raises(DataError, match=r"no document is left of .*a\.txt; give more text"):
        run(tmp_path / "vocab.txt", tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 15}, "size = 15: input should be greater than or equal to 16"),
        ({"kind": "byte-bpe", "size": 260}, "size = 260 is too small for byte-bpe; take 261 or more"),
        ({"special": ["LAW"]}, r"special token 'LAW' is not of the form \[NAME\]; write it so"),
        ({"special": ["[LAW]"], "kind": "byte-bpe"}, "special token '.LAW.' is not of the form <NAME>"),
        ({"special": ["[SEP]"]}, "special token '.SEP.' is there already; leave it out"),
        ({"kind": "sentencepiece"}, "kind = 'sentencepiece'"),
        ({"min_frequency": 0}, "min_frequency = 0"),
        ({"kind": "byte-bpe", "alphabet": 100}, "byte-bpe has no alphabet to limit; leave it out"),
        ({"kind": "words", "user_dictionary": "w.txt"}, r"words does not look for words; leave w\.txt out"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(VocabularySettings, {"out": "x", **settings}, "the command line")


def test_the_command(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "law.txt"
    arguments = ["--out", str(out), "--size", "900", "--special", "[LAW]", "--workers", "1"]
    assert cli.main(["vocab", str(text), *arguments]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(r"law\.txt has 900 entries: 9\d\.\d{3}% of [\d,]+ words can be written with them$", told)
    assert load_vocabulary(out).tokens[:6] == (*SPECIAL_TOKENS, "[LAW]")
    assert cli.main(["vocab", str(text), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"nezha-ds: {out} is there already")


def test_the_shipped_corpus_beside_bert_chinese(tmp_path: Path) -> None:
    """8,000 entries asked for: 4,100 of its own leave fewer unknown in the novel than BERT-Chinese's 21,128."""
    own = run(tmp_path / "vocab.txt", Path("embedded"), size=8000)
    assert 4000 < len(own) < 4300  # no more characters and pieces occur twice
    novel = "\n".join(document.text for document in read(Piece(find_files(["embedded"])[0], 0, None, 0), Reading()))
    found = {len(one): (Tokenizer(one).encode(novel).ids, one.unk_id) for one in (own, load_vocabulary())}
    tokens = [len(ids) for ids, _ in found.values()]
    unknown = [np.count_nonzero(ids == unk) / len(ids) for ids, unk in found.values()]
    assert unknown[0] < 0.001 < 0.02 < unknown[1]  # BERT's lacks “ and ”
    assert tokens[0] == pytest.approx(tokens[1], rel=0.01)
