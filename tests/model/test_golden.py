"""Hugging Face's own results, stored by tests/golden/make_golden.py, within 1e-5 in fp32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nezha_ds.batch import Batch
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import config_from_hf, hf_name, load_hf_state
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from tests.model.samples import serving_bodies

CASES = ["beyond", "within", "unusual"]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent.parent / "golden" / "nezha.npz") as arrays:
        return dict(arrays)


def part(golden: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array) for name, array in golden.items() if name.startswith(prefix)
    }


@pytest.fixture(params=[(case, body) for case in CASES for body in serving_bodies()], ids="-".join)
def run(request, golden):
    """The model after a backward pass, its batch and output, and Hugging Face's results."""
    case, body = request.param
    config = config_from_hf(json.loads(str(golden[f"{case}/config"])), case).model_copy(update={"attention": body})
    model = NezhaForPreTraining(config).eval()
    load_hf_state(model, part(golden, f"{case}/weights/"))
    tensors = part(golden, f"{case}/batch/")
    batch = Batch(sample_ids=torch.arange(len(tensors["lengths"])), **tensors)
    output = model(batch)
    losses = pretraining_losses(output, batch, ObjectiveSettings(nsp=1.0))
    losses.total.backward()
    return model, batch, output, losses, part(golden, f"{case}/results/")


def assert_close(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=lambda told: f"{name}: {told}")


def test_hidden_states(run):
    model, batch, _, _, expected = run
    hidden = model.encoder(batch.input_ids, batch.token_type_ids, batch.lengths)
    is_token = torch.arange(hidden.shape[1]) < batch.lengths[:, None]
    assert_close(hidden * is_token[..., None], expected["hidden"])


def test_scores_of_both_heads(run):
    _, _, output, _, expected = run
    assert_close(output.mlm_logits, expected["mlm_logits"])
    assert_close(output.nsp_logits, expected["nsp_logits"])


def test_loss(run):
    *_, losses, expected = run
    assert_close(losses.total, expected["loss"])


def test_gradients(run):
    model, *_, expected = run
    gradients = {hf_name(name): parameter.grad for name, parameter in model.named_parameters()}
    compared = [name for name in expected if name.startswith("gradients/")]
    for name in compared:
        assert_close(gradients[name.removeprefix("gradients/")], expected[name], name)
    assert len(compared) == 13
