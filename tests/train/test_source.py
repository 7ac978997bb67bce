"""The prepared text as a run opens it: what is refused, who plans, and what may replace a masked token."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nezha_ds.config import build
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.data.collate import replacement_ids
from nezha_ds.errors import DataError
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.text.vocab import SPECIAL_TOKENS, load_vocabulary, parse_vocabulary
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import Recipe
from nezha_ds.train.source import open_source, prepare_if_missing
from nezha_ds.world import World
from tests.train.small_text import DOCUMENTS, TEXT, prepare_small, swap_two_entries

ALONE = Ranks(World())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare_small(tmp_path_factory.mktemp("source"))


@pytest.fixture
def shards(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "shards")


def recipe(shards: Path, *prepare: str) -> Recipe:
    tree = {"run": {"folder": str(shards.parent / "run"), "prepare": prepare}, "data": {"shards": str(shards)}}
    return build(Recipe, tree, "a test")


def plans(shards: Path) -> list[Path]:
    return [path for path in shards.rglob("*") if "plan" in str(path.relative_to(shards)) and path.is_file()]


def test_it_holds_what_was_prepared_and_plans_both_splits(shards):
    source = open_source(recipe(shards), ALONE)
    assert source.has_heldout
    assert source.manifests[""].total("documents") == DOCUMENTS
    assert source.vocabulary == load_vocabulary()
    assert len(plans(shards)) >= 2


class PretendedRanks(Ranks):
    """A rank that is not its node's first, whose waits return."""

    def __init__(self):
        self.world, self._group = World(rank=1, world_size=2, local_rank=1, local_world_size=2), None


def test_only_the_first_rank_of_a_node_plans(shards):
    open_source(recipe(shards), PretendedRanks())
    assert not plans(shards)


def test_text_without_a_second_document_has_nothing_held_out(tmp_path):
    (tmp_path / "one.txt").write_text("一篇。" * 100, encoding="utf-8")
    prepare(PrepareSettings(inputs=(str(tmp_path / "one.txt"),), out=tmp_path / "shards", workers=1), progress=False)
    assert not open_source(recipe(tmp_path / "shards"), ALONE).has_heldout


@pytest.mark.parametrize("break_it", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_shards_that_are_missing_or_cut_short_are_named_before_ranks_meet(shards, break_it):
    shard = next(shards.glob("heldout-*.arrow"))
    break_it(shard)
    with pytest.raises(DataError) as caught:
        open_source(recipe(shards), ALONE)
    assert str(shard) in str(caught.value)
    assert "prepare again" in str(caught.value)


def test_the_vocabulary_of_another_preparation_is_refused(shards):
    swap_two_entries(shards / "vocab.txt")
    with pytest.raises(DataError, match=r"vocab\.txt is not the vocabulary .* was prepared with"):
        open_source(recipe(shards), ALONE)


def test_a_folder_that_is_not_prepared_tells_how(tmp_path):
    with pytest.raises(DataError, match="run `nezha-ds prepare INPUT --out"):
        open_source(recipe(tmp_path / "nothing"), ALONE)


def test_replacements_are_text():
    vocabulary = load_vocabulary()
    chosen = {vocabulary.tokens[index] for index in replacement_ids(vocabulary)}
    assert {"[PAD]", "[MASK]", "[UNK]", "[CLS]", "[SEP]", "[unused1]", "[unused99]"} & chosen == set()
    assert {"天", "##天", "the", "##ing", "[", "]", "。"} <= chosen
    # BERT-Chinese has 5 special entries and 99 unused ones.
    assert len(chosen) == len(vocabulary) - 104


def test_replacements_keep_brackets_that_are_text():
    data = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[]", "[", "a]", "[b"]).encode()
    assert np.array_equal(replacement_ids(parse_vocabulary(data, "a test")), [5, 6, 7, 8])


def test_a_model_folder_gets_the_vocabulary_byte_for_byte(shards):
    files = open_source(recipe(shards), ALONE).tokenizer_files(512)
    assert files["vocab.txt"] == (shards / "vocab.txt").read_bytes()
    assert json.loads(files["tokenizer_config.json"])["do_lower_case"] is True


def test_padding_is_where_the_vocabulary_has_it(tmp_path):
    entries = [*"天下大势分久必合，。第回0123456789话说周末七国争并入于秦", *SPECIAL_TOKENS]
    (tmp_path / "vocab.txt").write_text("\n".join(entries), encoding="utf-8")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = {"vocabulary": tmp_path / "vocab.txt", "out": tmp_path / "shards", "workers": 1}
    prepare(PrepareSettings(inputs=(str(tmp_path / "text.txt"),), **settings), progress=False)
    asked = recipe(tmp_path / "shards")
    vocabulary = open_source(asked, ALONE).vocabulary
    assert vocabulary.pad_id == len(entries) - 5
    config = asked.model.resolve(len(vocabulary), vocabulary.pad_id)
    words = NezhaForPreTraining(config.model_copy(update={"num_hidden_layers": 1})).encoder.embeddings.words.weight
    assert [index for index, row in enumerate(words) if not row.any()] == [vocabulary.pad_id]


# ------------------------------------------------------------------------------------------------ preparing on the way


def test_text_is_prepared_once(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    wanted = recipe(tmp_path / "shards", str(tmp_path / "text.txt"))
    prepare_if_missing(wanted)
    manifest = tmp_path / "shards" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    (tmp_path / "text.txt").unlink()
    prepare_if_missing(wanted)
    assert manifest.stat().st_mtime_ns == before


def test_nothing_is_prepared_that_was_not_asked_for(tmp_path):
    prepare_if_missing(recipe(tmp_path / "shards"))
    assert not (tmp_path / "shards").exists()
