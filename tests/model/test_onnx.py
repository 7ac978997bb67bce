"""The exported file gives PyTorch's numbers in onnxruntime, for any batch and length."""

import builtins

import numpy as np
import onnxruntime
import pytest
import torch

from nezha_ds.errors import CheckpointError, LaunchError
from nezha_ds.model.hf import save_folder, state_dict_to_hf
from nezha_ds.model.onnx import INPUTS, Served, export_onnx
from tests.model.samples import lively_model, small_config


def save(model, folder):
    save_folder(state_dict_to_hf(model), model.config, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(lively_model(small_config()), tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        ({"max_relative_position": 9}, False),
        ({"max_relative_position": 9}, True),
        ({"positions": "learned-absolute", "norm": "pre", "max_position_embeddings": 200}, True),
        ({"positions": "functional-relative-unclipped", "max_position_embeddings": 200}, False),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_any_batch_and_length_give_pytorchs_numbers(tmp_path, values, scores):
    model = lively_model(small_config(hidden_size=64, **values))
    export_onnx(save(model, tmp_path / "model"), tmp_path / "new" / "model.onnx", scores)
    session = onnxruntime.InferenceSession(tmp_path / "new" / "model.onnx")
    assert [one.name for one in session.get_inputs()] == list(INPUTS)
    served = Served(model, scores).eval()
    generator = torch.Generator().manual_seed(1)
    for batch, length in ((1, 2), (3, 200), (5, 17)):
        ids = torch.randint(1, 71, (batch, length), generator=generator)
        lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
        seen = (torch.arange(length) < lengths).long()
        values = (ids * seen, (ids % 2) * seen, seen)
        found = session.run(None, {name: value.numpy() for name, value in zip(INPUTS, values, strict=True)})
        expected = served(*values)
        assert len(found) == len(expected) == 1 + scores
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[seen.bool()], other[seen.bool()].detach(), atol=5e-5, rtol=1e-4)


def test_a_missing_library_is_named(folder, tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "onnxscript":
            raise ImportError("no", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(LaunchError, match=r"onnxscript is not installed; `pip install 'nezha-ds\[onnx\]'`"):
        export_onnx(folder, tmp_path / "model.onnx")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        export_onnx(tmp_path, tmp_path / "model.onnx")
