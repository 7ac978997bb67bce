"""Every folder that convert takes, made by hand under the names its owners use, gives the model it holds."""

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from nezha_ds.errors import CheckpointError, DataError, LaunchError
from nezha_ds.model.convert import HUAWEI_CONFIG, convert
from nezha_ds.model.hf import WORDS, config_to_hf, load_folder, save_folder, state_dict_to_hf
from nezha_ds.model.weights import from_tensorflow, read_weights
from tests.model.samples import lively_model, random_batch, small_config

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, *(chr(0x4E00 + number) for number in range(66))]


@pytest.fixture
def model():
    return lively_model(small_config())


def write_vocabulary(folder: Path, tokens: list[str] = TOKENS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return folder / "vocab.txt"


def huawei_folder(folder: Path, model, **config) -> Path:
    """NEZHA-PyTorch's own layout: pickled weights, old names, the table of positions in every layer."""
    write_vocabulary(folder)
    tensors = {re.sub("^nezha", "bert", name): tensor.clone() for name, tensor in state_dict_to_hf(model).items()}
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    for layer in range(2):
        name = f"bert.encoder.layer.{layer}.attention.self.relative_positions_encoding.positions_encoding"
        tensors[name] = torch.zeros(4, 4, 8)
    torch.save(tensors, folder / "pytorch_model.bin")
    values = config_to_hf(model.config) | {"use_relative_position": True} | config
    del values["model_type"], values["architectures"]
    (folder / "bert_config.json").write_text(json.dumps(values))
    return folder


def our_folder(folder: Path, model, tensors=None) -> Path:
    write_vocabulary(folder)
    save_folder(tensors or state_dict_to_hf(model), model.config, folder)
    return folder


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_huaweis_release_becomes_ours_and_goes_back(model, tmp_path):
    assert convert(huawei_folder(tmp_path / "huawei", model), tmp_path / "ours") == ()
    assert same(load_folder(tmp_path / "ours"), model)
    assert {"vocab.txt", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in (tmp_path / "ours").iterdir()}
    assert convert(tmp_path / "ours", tmp_path / "back", form="huawei") == ()
    back, first = (torch.load(tmp_path / name / "pytorch_model.bin") for name in ("back", "huawei"))
    assert back.keys() == {name for name in first if "positions_encoding" not in name}
    assert all(torch.equal(back[name], first[name]) for name in back)
    assert json.loads((tmp_path / "back" / HUAWEI_CONFIG).read_text())["use_relative_position"] is True
    convert(tmp_path / "back", tmp_path / "again")
    assert same(load_folder(tmp_path / "again"), model)


def test_a_bert_gives_its_words_and_layers(model, tmp_path):
    tensors = {re.sub("^nezha", "bert", name): tensor for name, tensor in state_dict_to_hf(model).items()}
    tensors["bert.embeddings.position_embeddings.weight"] = torch.ones(512, 32)
    folder = our_folder(tmp_path / "bert", model, tensors)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "bert"}
    del config["max_relative_position"]
    (folder / "config.json").write_text(json.dumps(config))
    (told,) = convert(folder, tmp_path / "ours")
    assert told.startswith("absolute positions dropped")
    assert same(load_folder(tmp_path / "ours"), model)
    assert load_folder(tmp_path / "ours").config.max_relative_position == 64


def test_other_positions_and_pre_ln_are_kept(tmp_path):
    model = lively_model(small_config(positions="learned-absolute", norm="pre", max_position_embeddings=20))
    assert convert(our_folder(tmp_path / "first", model), tmp_path / "second") == ()
    assert same(load_folder(tmp_path / "second"), model)
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "first", tmp_path / "huawei", form="huawei")
    assert str(caught.value) == (
        "Huawei's code has functional relative positions and Post-LN alone, this model positions = 'learned-absolute' "
        "and norm = 'pre'; convert to the form huggingface"
    )


def test_our_own_bert_becomes_a_start_for_nezha_as_any_other_does(tmp_path):
    bert = lively_model(small_config(positions="learned-absolute"))
    (told,) = convert(our_folder(tmp_path / "bert", bert), tmp_path / "nezha")
    assert told.startswith("absolute positions dropped")
    start = load_folder(tmp_path / "nezha")
    assert (start.config.positions, start.config.max_relative_position) == ("functional-relative", 64)
    assert same(start.encoder.blocks, bert.encoder.blocks)


def test_a_bare_encoder_gets_heads_and_a_task_loses_its_own(model, tmp_path):
    tensors = {name.removeprefix("nezha."): tensor for name, tensor in state_dict_to_hf(model).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(("cls.", "pooler."))}
    tensors["classifier.weight"] = torch.zeros(3, 32)
    told = convert(our_folder(tmp_path / "bare", model, tensors), tmp_path / "ours")
    assert "heads of a task dropped: classifier" in told
    assert any("starts afresh" in line and "nezha.pooler.dense" in line and "cls.predictions" in line for line in told)
    loaded = load_folder(tmp_path / "ours")
    assert same(loaded.encoder.blocks, model.encoder.blocks)
    assert loaded.mlm.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)


HEADS = {"span_form": "nezha", "sentence_order": True}


def test_more_heads_go_along_both_ways(tmp_path):
    model = lively_model(small_config(**HEADS))
    assert convert(our_folder(tmp_path / "ours", model), tmp_path / "huawei", form="huawei") == ()
    assert convert(tmp_path / "huawei", tmp_path / "back") == ()
    assert same(load_folder(tmp_path / "back"), model)


def test_heads_that_the_config_does_not_name_are_dropped_aloud_and_missing_ones_start_afresh(model, tmp_path):
    """transformers saves a config with all that it read and weights without what it does not know."""
    more = lively_model(small_config(**HEADS))
    folder = our_folder(tmp_path / "named", more, state_dict_to_hf(model))
    (told,) = convert(folder, tmp_path / "afresh")
    assert told.startswith("starts afresh, as the weights lack it: cls.sentence_order, cls.span, cls.span.transform.0")
    loaded = load_folder(tmp_path / "afresh")
    assert same(loaded.encoder, model.encoder) and loaded.span is not None
    unnamed = our_folder(tmp_path / "unnamed", model, state_dict_to_hf(more))
    assert convert(unnamed, tmp_path / "dropped") == (
        "heads dropped, as the config does not name them: cls.sentence_order, cls.span",
    )
    assert same(load_folder(tmp_path / "dropped").encoder, more.encoder)


def test_the_bias_of_spans_follows_its_entries(tmp_path):
    model = lively_model(small_config(**HEADS))
    vocabulary = write_vocabulary(tmp_path / "wanted", [*reversed(TOKENS[:50]), "法", "##院"])
    convert(our_folder(tmp_path / "theirs", model), tmp_path / "ours", vocabulary=vocabulary, resize=True)
    assert torch.equal(load_folder(tmp_path / "ours").span.bias[:50], model.span.bias[:50].flip(0))


def test_a_layer_does_not_start_afresh(model, tmp_path):
    tensors = dict(state_dict_to_hf(model))
    del tensors["nezha.encoder.layer.1.output.dense.bias"]
    with pytest.raises(CheckpointError, match=r"missing: nezha\.encoder\.layer\.1\.output\.dense\.bias"):
        convert(our_folder(tmp_path / "cut", model, tensors), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_shared_entries_keep_their_rows(model, tmp_path):
    wanted = [*reversed(TOKENS[:50]), "法", "##院"]
    vocabulary = write_vocabulary(tmp_path / "wanted", wanted)
    folder = our_folder(tmp_path / "theirs", model)
    with pytest.raises(DataError, match=r"71 rows of words and the vocabulary 52 entries of other .* --resize"):
        convert(folder, tmp_path / "ours", vocabulary=vocabulary)
    (told,) = convert(folder, tmp_path / "ours", vocabulary=vocabulary, resize=True)
    assert told == "vocabulary: 50 entries kept by name, 2 new ones start afresh, 21 gone"
    ours = load_folder(tmp_path / "ours")
    assert torch.equal(ours.encoder.embeddings.words.weight[:50], model.encoder.embeddings.words.weight[:50].flip(0))
    assert torch.equal(ours.mlm.bias[:50], model.mlm.bias[:50].flip(0))
    assert ours.config.pad_token_id == wanted.index("[PAD]")
    assert 0 < ours.encoder.embeddings.words.weight[50:].std().item() < 0.03
    # The same sentence in both vocabularies gives the same scores for the entries that both have.
    batch = random_batch([9, 5], vocab_size=50)
    turned = random_batch([9, 5], vocab_size=50)
    turned.input_ids[:] = torch.where(batch.input_ids < 50, 49 - batch.input_ids, batch.input_ids)
    scores, expected = ours(turned).mlm_logits, model(batch).mlm_logits
    torch.testing.assert_close(scores[..., :50].flip(-1), expected[..., :50])


def test_rows_beyond_the_vocabulary_are_cut_when_told(model, tmp_path):
    tensors = dict(state_dict_to_hf(model))
    tensors[WORDS] = torch.cat([tensors[WORDS], torch.zeros(9, 32)])
    tensors["cls.predictions.bias"] = torch.cat([tensors["cls.predictions.bias"], torch.zeros(9)])
    folder = our_folder(tmp_path / "padded", model, tensors)
    with pytest.raises(DataError, match=r"80 rows of words and the vocabulary 71 entries; name .* --resize"):
        convert(folder, tmp_path / "ours")
    assert convert(folder, tmp_path / "ours", resize=True) == (
        "vocabulary: 71 entries kept by name, 0 new ones start afresh, 0 gone",
    )
    assert same(load_folder(tmp_path / "ours"), model)


def test_without_a_vocabulary_one_must_be_named(model, tmp_path):
    folder = our_folder(tmp_path / "theirs", model)
    moved = (folder / "vocab.txt").rename(tmp_path / "vocab.txt")
    with pytest.raises(DataError, match=r"theirs has no vocab\.txt; name it with --vocabulary"):
        convert(folder, tmp_path / "ours")
    convert(folder, tmp_path / "ours", vocabulary=moved)
    assert same(load_folder(tmp_path / "ours"), model)


def test_the_activation_can_be_named(model, tmp_path):
    convert(our_folder(tmp_path / "theirs", model), tmp_path / "ours", activation="gelu_tanh")
    assert load_folder(tmp_path / "ours").config.hidden_act == "gelu_tanh"
    with pytest.raises(CheckpointError, match="GELU by erf alone; convert with --activation gelu"):
        convert(tmp_path / "ours", tmp_path / "huawei", form="huawei")
    assert not (tmp_path / "huawei").exists()


def test_nan_is_named(model, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in state_dict_to_hf(model).items()}
    tensors["nezha.pooler.dense.weight"][0, :3] = float("nan")
    with pytest.raises(CheckpointError, match=r"nezha\.pooler\.dense\.weight has 3 numbers that are NaN"):
        convert(our_folder(tmp_path / "theirs", model, tensors), tmp_path / "ours")


class Bomb:
    """Unpickled by an ordinary pickle.load, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


@pytest.mark.parametrize("how", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_nothing_pickled_is_executed(model, tmp_path, how):
    folder = huawei_folder(tmp_path / "hostile", model)
    how({"bert.embeddings.word_embeddings.weight": Bomb(tmp_path / "mark")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than tensors"):
        convert(folder, tmp_path / "ours")
    assert not (tmp_path / "mark").exists()


def test_many_files_behind_an_index(model, tmp_path):
    tensors = state_dict_to_hf(model)
    names = sorted(tensors)
    places = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(names)}
    folder = our_folder(tmp_path / "many", model)
    (folder / "model.safetensors").unlink()
    for file in set(places.values()):
        part = {name: tensors[name].contiguous() for name in names if places[name] == file}
        safetensors.torch.save_file(part, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    convert(folder, tmp_path / "ours")
    assert same(load_folder(tmp_path / "ours"), model)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_weights(folder)


def to_tensorflow(model) -> dict[str, np.ndarray]:
    """The model's variables as TensorFlow's code names them, and what its optimizer leaves beside them."""
    variables: dict[str, np.ndarray] = {"global_step": np.array(7)}
    for name, tensor in state_dict_to_hf(model).items():
        path, _, kind = name.rpartition(".")
        path = re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", path.replace("nezha.", "bert.")).replace(".", "/")
        values = tensor.detach().numpy()
        if path.endswith("_embeddings"):
            variable = path
        elif path.endswith("LayerNorm"):
            variable = f"{path}/{ {'weight': 'gamma', 'bias': 'beta'}[kind] }"
        elif path == "cls/seq_relationship":
            variable = f"{path}/output_weights" if kind == "weight" else f"{path}/output_bias"
        elif path == "cls/predictions":
            variable = f"{path}/output_bias"
        else:
            variable = f"{path}/kernel" if kind == "weight" else f"{path}/bias"
            values = values.T if kind == "weight" else values
        variables[variable] = values
        variables[f"{variable}/lamb_m"] = variables[f"{variable}/adam_v"] = np.zeros(1)
    return variables


def test_tensorflows_names_are_all_known(model):
    found = from_tensorflow(to_tensorflow(model))
    expected = {re.sub("^nezha", "bert", name): tensor for name, tensor in state_dict_to_hf(model).items()}
    current = {name.replace("gamma", "weight").replace("beta", "bias"): tensor for name, tensor in found.items()}
    assert current.keys() == expected.keys()
    assert all(torch.equal(current[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "pytorch_model.bin").unlink(), r"hers has no weights; name a folder with"),
        (lambda folder: (folder / "bert_config.json").unlink(), r"neither config\.json nor bert_config\.json"),
        (lambda folder: (folder / "bert_config.json").write_text("["), r"bert_config\.json cannot be read"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04cut"), r"pytorch_model\.bin cannot be"),
        (lambda folder: torch.save([1], folder / "pytorch_model.bin"), r"is no state dict"),
    ],
)
def test_a_spoilt_folder_is_named(model, tmp_path, spoil, message):
    folder = huawei_folder(tmp_path / "hers", model)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        convert(folder, tmp_path / "ours")


def test_several_files_of_weights_are_refused(model, tmp_path):
    folder = huawei_folder(tmp_path / "hers", model)
    (folder / "pytorch_model.bin").rename(folder / "a.bin")
    (folder / "b.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"several files of weights \(a\.bin, b\.bin\)"):
        convert(folder, tmp_path / "ours")


def test_a_full_folder_is_left_alone(model, tmp_path):
    write_vocabulary(tmp_path / "out")
    with pytest.raises(LaunchError, match="is not empty"):
        convert(our_folder(tmp_path / "theirs", model), tmp_path / "out")


def test_a_tensorflow_checkpoint_without_tensorflow_names_the_cure(model, tmp_path, monkeypatch):
    folder = huawei_folder(tmp_path / "tf", model)
    (folder / "pytorch_model.bin").unlink()
    (folder / "bert_model.ckpt.index").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(LaunchError, match="pip install tensorflow-cpu"):
        convert(folder, tmp_path / "ours")
