import shutil

import pytest
import torch

from nezha_ds.errors import CheckpointError, DataError
from nezha_ds.model.config import preset
from nezha_ds.model.fill_mask import fill_mask
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import save_folder, state_dict_to_hf
from nezha_ds.text.tokenizer import tokenizer_files
from nezha_ds.text.vocab import load_vocabulary

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that answers 水, or after it 江, whatever it is asked."""
    folder, vocabulary = tmp_path_factory.mktemp("export"), load_vocabulary()
    model = NezhaForPreTraining(preset("tiny", max_position_embeddings=16, **SIZES))
    with torch.no_grad():
        model.encoder.embeddings.words.weight.zero_()
        model.mlm.bias[vocabulary.ids["水"]] = 20.0
        model.mlm.bias[vocabulary.ids["江"]] = 19.0
    save_folder(state_dict_to_hf(model), model.config, folder, tokenizer_files(vocabulary, True, 16))
    return folder


def test_each_mask_gets_candidates_best_first(folder):
    answers = fill_mask(folder, "滚滚长江东[MASK]水，浪花[MASK]尽英雄", top=2)
    assert [[candidate.token for candidate in each] for each in answers] == [["水", "江"], ["水", "江"]]
    first, second = answers[0]
    # A softmax over 20, 19 and 21,126 zeros.
    assert first.probability == pytest.approx(2.718281828 / (1 + 2.718281828), rel=1e-3)
    assert second.probability == pytest.approx(1 / (1 + 2.718281828), rel=1e-3)


def test_the_vocabulary_bounds_the_candidates(folder):
    assert len(fill_mask(folder, "[MASK]", top=99_999)[0]) == 21128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("滚滚长江东逝水", r"the text has no \[MASK\]; write one .* 滚滚长江东\[MASK\]水"),
        ("", r"the text has no \[MASK\]"),
        ("[MASK]" * 15, "the text has 17 tokens and the model takes 16; shorten"),
    ],
)
def test_a_text_that_cannot_be_filled_is_refused(folder, text, message):
    with pytest.raises(DataError, match=message):
        fill_mask(folder, text)


def test_a_text_as_long_as_the_model_is_filled(folder):
    assert len(fill_mask(folder, "[MASK]" * 14)) == 14


def test_another_models_vocabulary_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model = NezhaForPreTraining(preset("tiny", vocab_size=500, **SIZES))
    save_folder(state_dict_to_hf(model), model.config, tmp_path)
    with pytest.raises(DataError, match="has 21,128 entries and its model 500; put the vocabulary there"):
        fill_mask(tmp_path, "[MASK]")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="name a folder that export wrote"):
        fill_mask(tmp_path, "[MASK]")


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    model = NezhaForPreTraining(preset("tiny", **SIZES))
    save_folder(state_dict_to_hf(model), model.config, tmp_path)
    with pytest.raises(DataError, match=r"vocab\.txt"):
        fill_mask(tmp_path, "[MASK]")
