"""Parity with transformers 4.57.6 in everything between input and gradients: states after every layer, attention
probabilities, scores of both heads, the loss, gradients of all parameters. fp32, 1e-5.

A number's error is measured against the largest number of its tensor, or 1: a sum of products in fp32 errs in
proportion to its largest terms, so that an entry near zero cannot be judged by its own size. Gradients, which are much
smaller than 1, are measured against the largest gradient of their layer alone: that of a key's bias is zero in exact
arithmetic (a bias adds the same to all scores of a query), and what is computed of it is rounding.

Probabilities of any body are read from its own outputs, which are linear in the values: with zeros for values it gives
the position term, and with a unit vector for some of the keys the probabilities of these beside it.
"""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nezha_ds.model.attention import BODIES
from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import hf_name, save_folder, state_dict_to_hf
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from tests.model.samples import random_batch, save_batch, serving_bodies

CASES = {
    # Whole models with a small vocabulary; sequences that reach beyond the clip of 64.
    "base": {"preset": "base", "vocab_size": 997, "lengths": [130, 61]},
    "large": {"preset": "large", "vocab_size": 997, "lengths": [70, 40]},
    # Heads of 16 to 128; clips far below, above and as long as the sequences; one token alone; 1, 2 and 3 types.
    "narrow": {"heads": (4, 32), "max_relative_position": 5, "type_vocab_size": 3, "lengths": [40, 17, 2]},
    "wide": {"heads": (1, 128), "max_relative_position": 127, "hidden_act": "gelu_tanh", "lengths": [66, 64, 1]},
    "uneven": {"heads": (3, 48), "type_vocab_size": 1, "lengths": [65, 64]},
    "long": {"heads": (2, 16), "max_relative_position": 127, "lengths": [300]},
    "single": {"heads": (2, 32), "type_vocab_size": 3, "hidden_act": "gelu_tanh", "lengths": [1, 1]},
}
# Every body by its name for whole bases; 300 million parameters through every one would take half a minute more.
RUNS = [
    (case, body)
    for case in CASES
    for body in serving_bodies()
    if {"base": body != "auto", "large": body == "auto"}.get(case, True)
]
TOLERANCE = 1e-5

pytestmark = pytest.mark.oracle


def build(case):
    """A model with weights, biases and norms as large as in trained ones, and its batch."""
    values = dict(CASES[case])
    lengths = values.pop("lengths")
    if "heads" in values:
        heads, size = values.pop("heads")
        sizes = {"hidden_size": heads * size, "num_attention_heads": heads, "intermediate_size": 3 * heads * size}
        values |= {"preset": "tiny", "vocab_size": 97, "num_hidden_layers": 2, **sizes}
    config = preset(values.pop("preset"), max_position_embeddings=max(lengths) + 3, **values)
    model = NezhaForPreTraining(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
    # As many predictions as every row has room for: theirs takes one label a place.
    predictions = min(2, max(lengths))
    return model, random_batch(lengths, config.vocab_size, predictions, types=config.type_vocab_size)


class Spy:
    """A body that remembers what it was given."""

    def __init__(self, body):
        self.body = body

    def __call__(self, *arguments):
        self.arguments = [each.detach() if isinstance(each, Tensor) else each for each in arguments]
        return self.body(*arguments)

    @torch.no_grad()
    def probabilities(self):
        """(B, N, L, L), as many keys at a time as a head has features."""
        q, k, v, *rest = self.arguments
        length, size = v.shape[2:]
        nothing = self.body(q, k, torch.zeros_like(v), *rest)
        columns = []
        for start in range(0, length, size):
            units = torch.zeros_like(v)
            count = min(size, length - start)
            units[:, :, start : start + count, :count] = torch.eye(count)
            columns.append((self.body(q, k, units, *rest) - nothing)[..., :count])
        return torch.cat(columns, dim=3)


def everything(model, batch, body):
    """What oracle.py has of theirs, under its names."""
    states, spies, hooks = [], [], []
    for module in (model.encoder.embeddings, *model.encoder.blocks):
        hooks.append(module.register_forward_hook(lambda module, given, output: states.append(output.detach())))
    for block in model.encoder.blocks:
        spies.append(Spy(BODIES[body]))
        block.attention.body = spies[-1]
    output = model(batch)
    losses = pretraining_losses(output, batch, ObjectiveSettings(nsp=1.0))
    gradients = torch.autograd.grad(losses.total, list(model.parameters()))
    for hook in hooks:
        hook.remove()
    found = {f"states/{layer}": tensor for layer, tensor in enumerate(states)}
    found |= {f"probabilities/{layer}": spy.probabilities() for layer, spy in enumerate(spies)}
    found |= {"mlm_logits": output.mlm_logits, "nsp_logits": output.nsp_logits, "loss": losses.total}
    found |= {
        f"gradients/{hf_name(name)}": tensor
        for (name, _), tensor in zip(model.named_parameters(), gradients, strict=True)
    }
    return {name: tensor.detach() for name, tensor in found.items()}


@pytest.fixture(scope="module")
def asked(oracle, tmp_path_factory):
    """Each case's model and batch, and the folder with transformers' results of all."""
    folder = tmp_path_factory.mktemp("parity")
    built = {case: build(case) for case in CASES}
    for case, (model, batch) in built.items():
        save_folder(state_dict_to_hf(model), model.config, folder / "cases" / case)
        save_batch(batch, folder / "cases" / case / "batch.npz")
    oracle(folder)
    yield built, folder
    shutil.rmtree(folder)  # 3 GB


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def run(request, asked):
    """Our results, transformers', and where the batch has tokens: (B, L)."""
    (case, body), (built, folder) = request.param, asked
    model, batch = built[case]
    expected = load_file(folder / "cases" / case / "results.safetensors")
    return everything(model, batch, body), expected, torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]


def error(ours, theirs, size=None):
    """The largest difference, against the largest number or 1."""
    size = max(1.0, float(theirs.abs().max())) if size is None else size
    return float((ours - theirs).abs().max()) / size


def test_states_after_every_layer(run):
    ours, theirs, is_token = run
    names = [name for name in theirs if name.startswith("states/")]
    assert len(names) == sum(name.startswith("states/") for name in ours)
    for name in names:
        assert error(ours[name][is_token], theirs[name][is_token]) < TOLERANCE, name


def test_probabilities_of_every_layer(run):
    ours, theirs, is_token = run
    names = [name for name in theirs if name.startswith("probabilities/")]
    assert len(names) == sum(name.startswith("probabilities/") for name in ours) > 0
    for name in names:
        # (B, N, L, L) -> (B, L, N, L): rows of tokens only.
        one, other = ours[name].transpose(1, 2)[is_token], theirs[name].transpose(1, 2)[is_token]
        assert error(one, other) < TOLERANCE, name


@pytest.mark.parametrize("name", ["mlm_logits", "nsp_logits", "loss"])
def test_scores_and_loss(run, name):
    ours, theirs, _ = run
    assert error(ours[name], theirs[name]) < TOLERANCE


def test_gradients_of_every_parameter(run):
    ours, theirs, _ = run
    names = [name for name in theirs if name.startswith("gradients/")]
    assert set(names) == {name for name in ours if name.startswith("gradients/")}
    largest: dict[str, float] = {}
    for name in names:
        largest[layer_of(name)] = max(largest.get(layer_of(name), 0.0), float(theirs[name].abs().max()))
    for name in names:
        assert error(ours[name], theirs[name], largest[layer_of(name)]) < TOLERANCE, name


def layer_of(name):
    """`nezha.encoder.layer.3`, or what stands there instead: the embeddings, the pooler, the heads."""
    return re.search(r"layer\.\d+|embeddings|pooler|predictions|seq_relationship", name)[0]
