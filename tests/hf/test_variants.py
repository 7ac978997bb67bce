"""Every architecture leaves as a folder that today's transformers opens, and computes there what it computes here."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining, BertForPreTraining

import nezha_ds.hf
from nezha_ds.errors import DataError
from nezha_ds.model.hf import load_folder, save_folder, state_dict_to_hf
from nezha_ds.model.nezha import RESIDUALS
from nezha_ds.model.positions import KINDS
from tests.model.samples import lively_model, random_batch, small_config

LENGTHS = [40, 25, 3]


def exported(folder, **values):
    model = lively_model(small_config(max_position_embeddings=40, **values))
    save_folder(state_dict_to_hf(model), model.config, folder)
    return model


def answers(opened, batch):
    """Both heads' scores by transformers, at the places that our decoder looks at."""
    seen = (torch.arange(max(LENGTHS)) < batch.lengths[:, None]).long()
    found = opened.eval()(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids, attention_mask=seen)
    rows = torch.arange(len(LENGTHS))[:, None]
    return found.prediction_logits[rows, batch.mlm_positions], found.seq_relationship_logits


def assert_same_answers(opened, model):
    batch = random_batch(LENGTHS)
    expected = model(batch)
    words, pairs = answers(opened, batch)
    torch.testing.assert_close(words, expected.mlm_logits)
    torch.testing.assert_close(pairs, expected.nsp_logits)


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("norm", RESIDUALS)
def test_every_architecture_opens_and_comes_back(positions, norm, tmp_path):
    model = exported(tmp_path / "ours", positions=positions, norm=norm)
    opened, info = AutoModelForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_answers(opened, model)
    opened.save_pretrained(tmp_path / "theirs")
    again = load_folder(tmp_path / "theirs")
    assert again.config == load_folder(tmp_path / "ours").config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_with_berts_positions_it_is_a_bert(act, tmp_path):
    """Opened by transformers' own class, which knows nothing of us."""
    model = exported(tmp_path, positions="learned-absolute", hidden_act=act)
    opened, info = BertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(opened).__module__ == "transformers.models.bert.modeling_bert"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not set(json.loads((tmp_path / "config.json").read_text())) & {"positions", "norm", "max_relative_position"}
    assert_same_answers(opened, model)


def test_another_architecture_has_another_name_so_that_nobody_misreads_it(tmp_path):
    exported(tmp_path, norm="pre")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "nezha_ds"
    config = AutoConfig.from_pretrained(tmp_path)
    assert (type(config), config.norm) == (nezha_ds.hf.NezhaConfig, "pre")
    config.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "nezha_ds"
    assert nezha_ds.hf.NezhaConfig().to_dict()["model_type"] == "nezha"


@pytest.mark.parametrize("positions", KINDS)
def test_a_fresh_model_has_its_positions(positions, tmp_path):
    exported(tmp_path, positions=positions, norm="pre")
    fresh = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(tmp_path)).nezha
    rows = (fresh.encoder.relative_positions or fresh.embeddings.position_embeddings).weight
    if KINDS[positions].learned:
        assert 0.015 < rows.std().item() < 0.025
    else:
        assert torch.equal(rows, KINDS[positions].rows(small_config(positions=positions, max_position_embeddings=40)))


def test_attentions_are_rows_of_probabilities(tmp_path):
    exported(tmp_path, positions="functional-absolute")
    found = AutoModelForPreTraining.from_pretrained(tmp_path).eval()(
        torch.tensor([[2, 9, 3]]), attention_mask=torch.tensor([[1, 1, 0]]), output_attentions=True
    )
    assert len(found.attentions) == 2
    torch.testing.assert_close(found.attentions[0].sum(-1), torch.ones(1, 4, 3))
    assert found.attentions[0][..., 2].count_nonzero() == 0


def test_a_sequence_beyond_the_positions_is_refused(tmp_path):
    exported(tmp_path, positions="functional-absolute")
    opened = AutoModelForPreTraining.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="the sequence has 41 tokens, and positions = 'functional-absolute' tell 40"):
        opened(torch.ones(1, 41, dtype=torch.long))
