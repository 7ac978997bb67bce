"""A model folder with a tokenizer, for today's transformers to open."""

import pytest

from nezha_ds.model.hf import save_folder, state_dict_to_hf
from nezha_ds.text.tokenizer import tokenizer_files
from nezha_ds.text.vocab import parse_vocabulary
from tests.model.samples import lively_model, small_config

CHARACTERS = [chr(0x4E00 + number) for number in range(66)]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]


@pytest.fixture(scope="package")
def model():
    return lively_model(small_config(hidden_size=128))


@pytest.fixture(scope="package")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "model"
    vocabulary = parse_vocabulary("\n".join(TOKENS).encode(), "tests")
    save_folder(state_dict_to_hf(model), model.config, folder, tokenizer_files(vocabulary, True, 512))
    return folder
