"""Weights that cannot be trusted: each fault is one line with the file, the tensor, what was expected and what was
found, before a model is built, by every reader: convert, load_folder and what stands on it (fill-mask, onnx).
"""

import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nezha_ds.errors import CheckpointError, DataError
from nezha_ds.model.convert import convert
from nezha_ds.model.fill_mask import fill_mask
from nezha_ds.model.hf import WORDS, load_folder, save_folder, state_dict_to_hf
from nezha_ds.model.onnx import export_onnx
from nezha_ds.model.weights import read_weights
from nezha_ds.text.tokenizer import tokenizer_files
from nezha_ds.text.vocab import parse_vocabulary
from tests.model.samples import lively_model, small_config

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + number) for number in range(66))]
BIAS = "nezha.encoder.layer.1.output.dense.bias"

READERS = {
    "load_folder": lambda folder: load_folder(folder),
    "fill-mask": lambda folder: fill_mask(folder, "[MASK]"),
    "onnx": lambda folder: export_onnx(folder, folder / "model.onnx"),
    "convert": lambda folder: convert(folder, folder / "out"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole model folder."""
    model, vocabulary = lively_model(small_config()), parse_vocabulary("\n".join(TOKENS).encode(), "tests")
    save_folder(state_dict_to_hf(model), model.config, tmp_path / "model", tokenizer_files(vocabulary, True, 512))
    return tmp_path / "model"


def change(folder: Path, change) -> None:
    """Rewrite the weights."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def refused(reader: str, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        READERS[reader](folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists() and not (folder / "model.onnx").exists()
    return str(caught.value)


def spoil(tensors):
    tensors[BIAS][:3] = float("nan")
    tensors[BIAS][3] = float("-inf")


def quantise(tensors):
    tensors[BIAS] = (tensors[BIAS] * 100).to(torch.int8)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (spoil, f"{BIAS} has 4 numbers that are NaN or infinite; take an earlier checkpoint"),
        (
            quantise,
            f"{BIAS} holds int8, and weights are floating-point numbers; take the model before it was quantised",
        ),
    ],
    ids=["nan", "int8"],
)
def test_numbers_that_are_none(folder, reader, fault, message):
    change(folder, fault)
    told = refused(reader, folder)
    assert told.endswith(message) and str(folder) in told


LIES = {
    "hidden_size": (64, "hidden_size = 64 and nezha.embeddings.word_embeddings.weight has the shape (71, 32)"),
    # Would be 4 TB, and a million layers take minutes to build.
    "intermediate_size": (10**10, "nezha.encoder.layer.0.intermediate.dense.weight has the shape (48, 32)"),
    "num_hidden_layers": (10**6, "num_hidden_layers = 1000000 and the weights have 2 of them"),
    "type_vocab_size": (
        3,
        "type_vocab_size = 3 and nezha.embeddings.token_type_embeddings.weight has the shape (2, 32)",
    ),
}


@pytest.mark.parametrize("reader", ["load_folder", "convert"])
@pytest.mark.parametrize("size", LIES)
def test_a_config_that_lies(folder, reader, size):
    value, message = LIES[size]
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {size: value}))
    told = refused(reader, folder)
    assert told.startswith(f"{path} says {size} = {value}")
    assert message in told
    assert told.endswith("use the config.json they came with")


def test_a_vocabulary_that_lies_is_told_where_it_cannot_be_resized(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 70}))
    assert f"{path} says vocab_size = 70 and {WORDS} has the shape (71, 32)" in refused("load_folder", folder)


@pytest.mark.parametrize("reader", ["load_folder", "convert"])
@pytest.mark.parametrize(
    ("fault", "shape"), [(lambda x: x[:5], "(5,)"), (lambda x: x[:, None].repeat(1, 2), "(32, 2)")]
)
def test_a_tensor_of_another_shape(folder, reader, fault, shape):
    change(folder, lambda tensors: tensors.update({BIAS: fault(tensors[BIAS]).contiguous()}))
    assert f"of another shape: {BIAS} {shape} for (32,)" in refused(reader, folder)


# ----------------------------------------------------------------------------------------------------- files themselves


def header(size: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", size) + text


FILES = {
    "empty": b"",
    "cut header": header(500, b'{"a"'),
    "a header of exabytes": header(2**60, b"{}"),
    "no json": header(4, b"abcd"),
    "offsets beyond the end": header(60, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60))
    + b"1234",
    "a shape that its bytes do not fill": header(
        70, b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'.ljust(70)
    )
    + b"1234",
    "an unknown type": header(60, b'{"a":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}'.ljust(60)) + b"1234",
}


@pytest.mark.parametrize("reader", ["load_folder", "convert"])
@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_none(folder, reader, fault):
    (folder / "model.safetensors").write_bytes(FILES[fault])
    assert f"{folder / 'model.safetensors'} cannot be read" in refused(reader, folder)


@pytest.mark.parametrize("reader", ["load_folder", "convert"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "broken link"])
def test_what_is_no_file_is_not_waited_for(folder, reader, kind):
    path = folder / "model.safetensors"
    path.unlink()
    make = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "broken link": lambda path: path.symlink_to(path.parent / "nothing"),
    }
    make[kind](path)
    told = refused(reader, folder)
    assert "cannot be read" in told if kind == "broken link" else "is no regular file" in told


def test_links_are_followed_as_in_hugging_faces_cache(folder, tmp_path):
    blob = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(blob)
    assert load_folder(folder).config.hidden_size == 32
    convert(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()


@pytest.mark.parametrize("data", [b"[1]", b"[" * 100_000, b'"x"'])
@pytest.mark.parametrize("reader", ["load_folder", "convert"])
def test_a_config_that_is_none(folder, reader, data):
    (folder / "config.json").write_bytes(data)
    assert str(folder / "config.json") in refused(reader, folder)


@pytest.mark.parametrize("data", [b"{", b"[1]", b"[" * 100_000])
def test_a_tokenizers_config_that_is_none(folder, data):
    (folder / "tokenizer_config.json").write_bytes(data)
    with pytest.raises(DataError, match=r"tokenizer_config\.json cannot be read"):
        fill_mask(folder, "[MASK]")


@pytest.mark.parametrize("index", ["[1]", '{"weight_map": [1]}', '{"weight_map": {"a": []}}', "[" * 100_000])
def test_an_index_that_is_none(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"cannot be read|outside its folder"):
        read_weights(folder)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1).expand(10**12), r"pytorch_model\.bin: a has the shape \(1000000000000,\) and fewer numbers"),
        (torch.eye(3).to_sparse(), r"pytorch_model\.bin: a is sparse; save it dense"),
    ],
    ids=["hollow", "sparse"],
)
def test_a_pickle_that_claims_more_than_it_holds(tmp_path, tensor, message):
    torch.save({"a": tensor}, tmp_path / "pytorch_model.bin")
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 5000
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path)
