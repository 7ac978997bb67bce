import json

import pytest
import safetensors.torch
import torch

from nezha_ds.errors import CheckpointError, ConfigError
from nezha_ds.model import hf
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import config_from_hf, config_to_hf, load_folder, load_hf_state, save_folder, state_dict_to_hf
from nezha_ds.model.nezha import RESIDUALS
from nezha_ds.model.positions import KINDS
from tests.model.samples import lively_model, random_batch, small_config

EMBEDDINGS = "nezha.embeddings.word_embeddings.weight"


@pytest.fixture
def model():
    return lively_model(small_config())


@pytest.fixture
def tensors(model):
    return {name: tensor.clone() for name, tensor in state_dict_to_hf(model).items()}


def fresh():
    return NezhaForPreTraining(small_config(), seed=9)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


ARCHITECTURES = [(positions, norm) for positions in KINDS for norm in RESIDUALS]


@pytest.mark.parametrize(("positions", "norm"), ARCHITECTURES)
def test_every_architecture_comes_back_from_its_folder(positions, norm, tmp_path):
    model = lively_model(small_config(positions=positions, norm=norm, max_position_embeddings=40))
    save_folder(state_dict_to_hf(model), model.config, tmp_path)
    loaded, batch = load_folder(tmp_path), random_batch([40, 13])
    assert (loaded.config.positions, loaded.config.norm) == (positions, norm)
    assert same(model, loaded)
    assert torch.equal(loaded(batch).mlm_logits, model(batch).mlm_logits)


def test_a_config_of_before_these_options_is_nezha():
    values = config_to_hf(small_config())
    del values["positions"], values["norm"]
    assert config_from_hf(values, "") == config_from_hf(config_to_hf(small_config()), "")


@pytest.mark.parametrize(
    ("positions", "norm", "kind", "prefix"),
    [
        ("functional-relative", "post", "nezha", "nezha."),
        ("learned-absolute", "post", "bert", "bert."),
        ("learned-absolute", "pre", "nezha_ds", "nezha."),
        ("functional-relative-unclipped", "post", "nezha_ds", "nezha."),
    ],
)
def test_a_folder_says_what_it_is(positions, norm, kind, prefix, tmp_path):
    model = NezhaForPreTraining(small_config(positions=positions, norm=norm))
    save_folder(state_dict_to_hf(model), model.config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    names = set(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert {name.partition(".")[0] + "." for name in names} == {prefix, "cls."}
    assert (prefix + "embeddings.position_embeddings.weight" in names) == (positions == "learned-absolute")
    assert (prefix + "encoder.FinalLayerNorm.weight" in names) == (norm == "pre")


def test_learned_distances_have_a_name_of_their_own():
    names = state_dict_to_hf(NezhaForPreTraining(small_config(positions="learned-relative"))).keys()
    assert names - state_dict_to_hf(fresh()).keys() == {"nezha.encoder.relative_positions.weight"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_and_nothing_is_loaded(tensors, bad):
    tensors["nezha.encoder.layer.1.output.dense.weight"][3, 4] = bad
    loaded = fresh()
    with pytest.raises(
        CheckpointError, match=r"nezha\.encoder\.layer\.1\.output\.dense\.weight has 1 numbers that are"
    ):
        load_hf_state(loaded, tensors)
    assert same(loaded, fresh())


def test_names_are_a_bijection_and_those_of_bert(model, tensors):
    assert len(tensors) == len(model.state_dict())
    assert {
        EMBEDDINGS,
        "nezha.embeddings.LayerNorm.bias",
        "nezha.encoder.layer.1.attention.self.key.bias",
        "nezha.encoder.layer.0.attention.output.LayerNorm.weight",
        "nezha.encoder.layer.1.intermediate.dense.weight",
        "nezha.encoder.layer.1.output.dense.bias",
        "nezha.pooler.dense.weight",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.bias",
        "cls.seq_relationship.bias",
    } <= tensors.keys()


def test_a_folder_gives_back_the_model(model, tmp_path):
    save_folder(state_dict_to_hf(model), model.config, tmp_path / "out", {"vocab.txt": b"[PAD]\n"})
    loaded = load_folder(tmp_path / "out")
    assert same(model, loaded)
    assert not loaded.training
    assert loaded.config == model.config.model_copy(update={"preset": "base"})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}


def test_a_bf16_folder_says_so_and_gives_an_fp32_model(model, tmp_path):
    model.bfloat16()
    save_folder(state_dict_to_hf(model), model.config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert same(load_folder(tmp_path), model.float())


def test_an_export_that_dies_leaves_no_folder_that_opens(model, tmp_path, monkeypatch):
    save_folder(state_dict_to_hf(model), model.config, tmp_path)

    def dies(tensors, path, metadata):
        raise KeyboardInterrupt

    monkeypatch.setattr(hf, "write_tensors", dies)
    with pytest.raises(KeyboardInterrupt):
        save_folder(state_dict_to_hf(fresh()), model.config, tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_folder(tmp_path)


def test_older_names_are_read(model, tensors):
    def older(name):
        name = name.replace("nezha.", "bert.")
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    old = {older(name): tensor for name, tensor in tensors.items()}
    old["bert.encoder.layer.0.attention.self.relative_positions_encoding.positions_encoding"] = torch.zeros(4, 4, 8)
    old["bert.embeddings.position_ids"] = torch.arange(4)
    old["cls.predictions.decoder.weight"] = tensors[EMBEDDINGS]
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    assert not old.keys() & {EMBEDDINGS, "nezha.embeddings.LayerNorm.weight"}
    loaded = fresh()
    load_hf_state(loaded, old)
    assert same(model, loaded)


def drop(tensors):
    del tensors["nezha.pooler.dense.bias"]


def add(tensors):
    tensors["nezha.encoder.layer.2.output.dense.bias"] = torch.zeros(32)


def reshape(tensors):
    tensors[EMBEDDINGS] = tensors[EMBEDDINGS][:70]


def untie(tensors):
    tensors["cls.predictions.decoder.weight"] = tensors[EMBEDDINGS] + 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop, "missing: nezha.pooler.dense.bias"),
        (add, "unexpected: nezha.encoder.layer.2.output.dense.bias"),
        (reshape, f"of another shape: {EMBEDDINGS} (70, 32) for (71, 32)"),
        (untie, f"cls.predictions.decoder.weight differs from {EMBEDDINGS}"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tensors, fault, message):
    fault(tensors)
    loaded = fresh()
    with pytest.raises(CheckpointError) as caught:
        load_hf_state(loaded, tensors)
    assert message in str(caught.value)
    assert same(loaded, fresh())


def test_many_wrong_keys_are_told_in_one_line(tensors):
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more; unexpected: other") as caught:
        load_hf_state(fresh(), {"other": tensors[EMBEDDINGS]})
    assert len(str(caught.value)) < 500


HEADS = {"span_form": "spanbert", "sentence_order": True}


def test_a_folder_with_more_heads_gives_back_the_model(tmp_path):
    model = lively_model(small_config(**HEADS))
    save_folder(state_dict_to_hf(model), model.config, tmp_path)
    loaded = load_folder(tmp_path)
    assert same(model, loaded) and loaded.span is not None and loaded.sop is not None
    values = json.loads((tmp_path / "config.json").read_text())
    assert {name: values[name] for name in HEADS} == HEADS
    assert not config_to_hf(small_config()).keys() & HEADS.keys()


@pytest.mark.parametrize(
    ("config", "weights", "told"),
    [
        ({}, HEADS, "unexpected: cls.sentence_order.bias, cls.sentence_order.weight, cls.span.bias, "),
        (HEADS, {}, "missing: cls.sentence_order.bias, cls.sentence_order.weight, cls.span.bias, "),
    ],
)
def test_a_head_too_many_or_too_few_is_refused_with_the_way_out(tmp_path, config, weights, told):
    save_folder(state_dict_to_hf(lively_model(small_config(**weights))), small_config(**config), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_folder(tmp_path)
    assert told in str(caught.value)
    assert str(caught.value).endswith(
        "or `nezha-ds convert`, which drops heads that it does not name and starts missing ones afresh"
    )


@pytest.mark.parametrize("fault", ["removed", "cut", "pickle"])
def test_a_weights_file_that_cannot_be_read_is_named(model, tmp_path, fault):
    save_folder(state_dict_to_hf(model), model.config, tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    if fault != "removed":
        path.write_bytes(data[: len(data) // 2] if fault == "cut" else b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read .*; export again"):
        load_folder(tmp_path)


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe"])
def test_a_config_that_is_not_one_is_named(tmp_path, data):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', not 'nezha' or 'bert' or 'nezha_ds'; choose"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not known; known are gelu, gelu_new, gelu_pytorch_tanh"),
    ],
)
def test_another_kind_of_model_is_refused(values, message):
    with pytest.raises(CheckpointError) as caught:
        config_from_hf(config_to_hf(small_config()) | values, "x/config.json")
    assert message in str(caught.value)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"x/config\.json: hidden_size = 33 is not a multiple"):
        config_from_hf({"hidden_size": 33, "num_attention_heads": 2, "vocab_size": 10}, "x/config.json")


def test_a_config_without_a_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="vocab_size"):
        config_from_hf({"hidden_size": 32, "num_attention_heads": 2}, "x/config.json")


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_a_config_comes_back_and_other_keys_are_passed_over(act):
    config = small_config(hidden_act=act, max_relative_position=7, hidden_dropout_prob=0.0)
    values = config_to_hf(config) | {"use_cache": True, "classifier_dropout": None, "directionality": "bidi"}
    assert config_from_hf(values, "").model_copy(update={"preset": "tiny"}) == config
    assert not values.keys() & {"preset", "attention"}


def test_loading_follows_the_models_dtype(tensors):
    half = fresh().half()
    load_hf_state(half, tensors)
    assert half(random_batch([5, 3])).mlm_logits.dtype == torch.float16


def test_what_is_written_is_marked_for_torch(model, tmp_path):
    # transformers refuses files without the mark.
    save_folder(state_dict_to_hf(model), model.config, tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
