"""RoBERTa's byte-level BPE down the whole road: vocab, prepare, inspect, train, export, fill masks, transformers."""

import json
import re
import subprocess
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from nezha_ds import cli
from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.data.collate import replacement_ids, special_ids
from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import DataError
from nezha_ds.model.fill_mask import fill_mask
from nezha_ds.model.hf import load_folder
from nezha_ds.shards import read_manifest
from nezha_ds.text.byte_bpe import ByteVocabulary
from nezha_ds.text.kinds import KINDS
from nezha_ds.world import World
from tests.helpers import runs
from tests.text.conftest import shipped, transformers  # noqa: F401 - a fixture

SIZE = 2000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of the statutes, by the commands that a user would type."""
    folder = tmp_path_factory.mktemp("bpe")
    text, vocabulary, out = folder / "text.txt", folder / "tokenizer.json", folder / "shards"
    text.write_text("\n\n".join(shipped("statutes.txt.xz")[:250]))
    reading = [str(text), "--workers", "1"]
    assert cli.main(["vocab", *reading, "--kind", "byte-bpe", "--size", str(SIZE), "--out", str(vocabulary)]) == 0
    arguments = ["--tokenizer", "byte-bpe", "--vocabulary", str(vocabulary), "--out", str(out), "--heldout", "0.1"]
    assert cli.main(["prepare", *reading, *arguments]) == 0
    return out


def test_the_folder_says_what_it_is(prepared: Path) -> None:
    manifest = read_manifest(prepared)
    assert (manifest.tokenizer.kind, manifest.tokenizer.lowercase) == ("byte-bpe", False)
    vocabulary = folder_vocabulary(prepared, manifest)
    assert isinstance(vocabulary, ByteVocabulary)
    assert len(vocabulary) == manifest.tokenizer.vocabulary_size == SIZE
    assert not (prepared / "vocab.txt").exists()
    assert manifest.total("unknowns") == 0
    assert 1.1 < manifest.total("tokens") / manifest.total("words") < 2
    with pytest.raises(DataError, match=r"has tokenizer 'sentencepiece'; known are bert-wordpiece, byte-bpe; update"):
        other = manifest.tokenizer.model_copy(update={"kind": "sentencepiece"})
        folder_vocabulary(prepared, manifest.model_copy(update={"tokenizer": other}))


def test_inspect_shows_text(
    prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    assert cli.main(["inspect", str(prepared), "--samples", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"tokenizer +byte-bpe, 2,000 entries", shown)
    sample = shown.partition("document lengths")[2].partition("\n")[2]
    assert len(re.findall(r"[\u4e00-\u9fff]{2,} ", sample)) > 20
    assert "Ġ" not in sample


def test_batches_have_its_special_tokens(prepared: Path) -> None:
    manifest = read_manifest(prepared)
    v = folder_vocabulary(prepared, manifest)
    allowed = replacement_ids(v)
    assert allowed.tolist() == [*range(5, SIZE)]
    stream = Stream(
        DataSettings(shards=str(prepared), length=128, format="segment-pair"),
        MaskingSettings(mask_share=0.5, random_share=0.5),
        seed=1,
        micro_batch=64,
        world=World(),
        special=special_ids(v),
        random_ids=allowed,
    )
    with build_loader(stream, global_batch=64, first=0) as loader:
        batch = next(loader)
    ids, lengths = batch.input_ids.numpy(), batch.lengths.numpy()
    assert np.all(ids[:, 0] == 0)  # <s>
    assert np.all(ids[np.arange(64), lengths - 1] == 2)  # </s>
    assert np.all((ids == 2).sum(axis=1) == 2)
    assert np.all((ids == 1) == (np.arange(128) >= lengths[:, None]))  # <pad>
    labels = batch.mlm_labels.numpy()
    assert labels[labels >= 0].min() >= 5
    seen = np.take_along_axis(ids, batch.mlm_positions.numpy(), 1)[labels >= 0]
    assert 0.45 < (seen == 4).mean() < 0.55  # <mask>
    assert seen[seen != 4].min() >= 5


SCRIPT = """
import json, sys, torch
from transformers import AutoTokenizer, NezhaForMaskedLM
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = NezhaForMaskedLM.from_pretrained(sys.argv[1]).eval()
asked = tokenizer(sys.argv[2], return_tensors="pt")
with torch.no_grad():
    logits = model(**asked).logits[asked["input_ids"] == tokenizer.mask_token_id]
best = logits.softmax(-1).topk(3)
print(json.dumps([[tokenizer.decode(index) for index in row] for row in best.indices]), best.values.tolist(), sep="\\n")
print(model.config.pad_token_id, tokenizer.pad_token_id, model.config.vocab_size, len(tokenizer))
"""


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
@pytest.mark.oracle
def test_it_trains_and_opens_in_transformers(prepared: Path, transformers: Path, tmp_path: Path) -> None:  # noqa: F811
    run = runs.make(tmp_path, prepared, "train.steps=40", "train.save_every=40")
    run.finish()
    losses = run.losses()
    assert losses[40] < losses[1] - 0.1
    assert cli.main(["export", str(run.folder), str(tmp_path / "model")]) == 0
    model = load_folder(tmp_path / "model")
    assert (model.config.vocab_size, model.config.pad_token_id) == (SIZE, 1)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        *("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
    }
    query = "国务院有关<mask>按照职责分工，  人民 <mask>负责。"
    answers = fill_mask(tmp_path / "model", query, top=3)
    assert answers == fill_mask(tmp_path / "model", query.replace("<mask>", "[MASK]"), top=3)
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(transformers), "-c", SCRIPT, str(tmp_path / "model"), query]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tokens, shares, numbers = done.stdout.splitlines()
    assert json.loads(tokens) == [[one.token for one in each] for each in answers]
    expected = [one.probability for each in answers for one in each]
    assert [*chain(*json.loads(shares))] == pytest.approx(expected, rel=1e-4)
    assert numbers == f"1 1 {SIZE} {SIZE}"


def test_one_kind_replaces_another_only_when_asked(prepared: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("一篇。\n\n又一篇。")
    reading = ["prepare", str(text), "--workers", "1", "--out", str(out)]
    bpe = ["--tokenizer", "byte-bpe", "--vocabulary", str(prepared)]
    assert cli.main(reading) == 0
    assert cli.main([*reading, *bpe]) == 2
    assert cli.main([*reading, *bpe, "--overwrite"]) == 0
    assert [path.name for path in out.glob("*o*.[jt]*") if path.name in {kind.file for kind in KINDS.values()}] == [
        "tokenizer.json"
    ]


def test_a_vocabulary_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prepare", "embedded", "--tokenizer", "byte-bpe", "--out", str(tmp_path)]
    assert cli.main(arguments) == 2
    assert "ships without a vocabulary; train one with `nezha-ds vocab" in capsys.readouterr().err
    vocab_txt = Path(cli.__file__).parent / "assets" / "vocab.txt"
    assert cli.main([*arguments, "--vocabulary", str(vocab_txt)]) == 2
    assert "a vocab.txt goes with tokenizer 'bert-wordpiece'" in capsys.readouterr().err
